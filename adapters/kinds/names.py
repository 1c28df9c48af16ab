"""How peft names the tensors of a saved adapter, and their sorting by module."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping

from torch import Tensor

from adapters.errors import PackageError
from adapters.names import shown

PREFIX = "base_model.model."


def key(module: str, parameter: str) -> str:
    """The name under which peft saves ``parameter`` of its layer around ``module``."""
    return f"{PREFIX}{module}.{parameter}"


def by_module(tensors: Mapping[str, Tensor], parameters: Collection[str], kind: str) -> dict[str, dict[str, Tensor]]:
    """Tensors named ``base_model.model.<module>.<parameter>`` by module and parameter, in the order of the file.

    ``parameters`` may contain dots (``lora_A.weight``). Raises PackageError naming the first tensor that is none of
    them, and when there is none at all.
    """
    found: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        module, parameter = _split(name, parameters)
        if not module:
            known = ", ".join(f"{PREFIX}<module>.{parameter}" for parameter in parameters)
            raise PackageError(f"tensor {shown(name)} is unknown: a package of kind {kind} holds {known}")
        found[module][parameter] = tensor
    if not found:
        raise PackageError(f"the package holds no tensors of kind {kind}")
    return dict(found)


def take(module: str, found: Mapping[str, Tensor], parameter: str) -> Tensor:
    """``found[parameter]``. PackageError when it is missing."""
    if parameter not in found:
        raise PackageError(f"tensor {shown(key(module, parameter))} is missing; others of this module are there")
    return found[parameter]


def _split(name: str, parameters: Collection[str]) -> tuple[str, str]:
    if name.startswith(PREFIX):
        for parameter in parameters:
            if name.endswith(f".{parameter}") and len(name) > len(PREFIX) + len(parameter) + 1:
                return name[len(PREFIX) : -len(parameter) - 1], parameter
    return "", ""
