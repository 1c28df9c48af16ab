"""An adapter as it was saved: its configuration, its tensors as peft names them, and the checks of their shapes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import Tensor

from adapters.checkpoints import checkpoint
from adapters.errors import PackageError
from adapters.kinds.config import PREFIX, AdapterConfig
from adapters.limits import DEFAULT_LIMITS, PackageLimits
from adapters.quoting import quote


@dataclass(frozen=True, eq=False, kw_only=True)
class SavedAdapter:
    """What a kind compiles: a sound configuration, and tensors on the CPU in the dtypes as saved.

    ``limits`` are those that it was read under; what it is compiled to keeps to them too.
    """

    config: AdapterConfig
    tensors: Mapping[str, Tensor]
    limits: PackageLimits = DEFAULT_LIMITS


OTHER_BASE = "the shape suggests that the adapter was made for another base"


def tensor_name(module: str, parameter: str) -> str:
    """The name under which peft saves ``parameter`` of its layer around ``module``."""
    return f"{PREFIX}{module}.{parameter}"


def by_module(tensors: Mapping[str, Tensor], parameters: Collection[str], kind: str) -> dict[str, dict[str, Tensor]]:
    """Tensors named ``base_model.model.<module>.<parameter>`` by module and parameter, in the order of the file.

    ``parameters`` may contain dots (``lora_A.weight``). Raises PackageError naming the first tensor that is none of
    them, and when there is none at all.
    """
    found: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        checkpoint()
        module, parameter = _split_name(name, parameters)
        if not module:
            known = ", ".join(f"{PREFIX}<module>.{parameter}" for parameter in parameters)
            raise PackageError(f"tensor {quote(name)} is unknown: a package of kind {kind} holds {known}")
        found[module][parameter] = tensor
    if not found:
        raise PackageError(f"the package holds no tensors of kind {kind}")
    return dict(found)


def require(
    module: str, found: Mapping[str, Tensor], parameter: str, what: str = "others of this module are there"
) -> Tensor:
    """``found[parameter]``. PackageError when it is missing, saying ``what`` is there of its module."""
    if parameter not in found:
        raise PackageError(f"tensor {quote(tensor_name(module, parameter))} is missing; {what}")
    return found[parameter]


def _split_name(name: str, parameters: Collection[str]) -> tuple[str, str]:
    if name.startswith(PREFIX):
        for parameter in parameters:
            if name.endswith(f".{parameter}") and len(name) > len(PREFIX) + len(parameter) + 1:
                return name[len(PREFIX) : -len(parameter) - 1], parameter
    return "", ""


def expect_fractions(name: str, tensor: Tensor) -> None:
    """PackageError when a tensor of numbers holds integers."""
    if not tensor.is_floating_point():
        raise PackageError(f"tensor {quote(name)} holds integers; numbers with a fraction are expected")


def expect_shape(name: str, tensor: Tensor, expected: tuple[int, ...], hint: str = "") -> None:
    """PackageError naming tensor, found and expected shape when they differ."""
    if tuple(tensor.shape) != expected:
        tail = f"; {hint}" if hint else ""
        raise PackageError(f"tensor {quote(name)} has shape {list(tensor.shape)}, expected {list(expected)}{tail}")
