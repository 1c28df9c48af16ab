"""LN tuning: norms trained whole, and whatever other modules the configuration targets."""

from __future__ import annotations

from collections import defaultdict

from torch import Tensor

from adapters.base_spec import BaseSpec
from adapters.errors import PackageError
from adapters.kinds.config import PREFIX
from adapters.kinds.layers import check_targets
from adapters.kinds.patterns import PatternMatcher
from adapters.kinds.replacement.config import LnTuningConfig
from adapters.kinds.replacement.modules_to_save import replacement
from adapters.kinds.saved_adapter import SavedAdapter, expect_shape, tensor_name
from adapters.ops import Adapter
from adapters.quoting import quote

_PART = ".ln_tuning_layers."


def compile_ln_tuning(package: SavedAdapter, base: BaseSpec) -> Adapter:
    """Ops of an LN-tuning package (https://huggingface.co/papers/2312.11420).

    Semantics: the module computes with the saved parameters in the place of its own.
    Shape: ``<module>.ln_tuning_layers.<parameter>`` as the base stores that parameter.
    """
    config = package.config
    assert isinstance(config, LnTuningConfig)
    own = _parameters_by_module(base)
    found: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in package.tensors.items():
        module, parameter = _split(name, own, base)
        expect_shape(name, tensor, base.parameters[f"{module}.{parameter}"], "was the adapter made for another base?")
        found[module][parameter] = tensor
    for module, given in found.items():
        if missing := sorted(own[module] - given.keys()):
            raise PackageError(
                f"tensor {quote(tensor_name(module, _PART[1:] + missing[0]))} is missing; its partner is there"
            )
    parameter = f"{_PART[1:]}weight"
    check_targets(set(found), base, config, PatternMatcher(config), parameter, others=dict.fromkeys(own, parameter))
    return Adapter(config.KIND, {module: (replacement(module, given, base),) for module, given in found.items()})


def _parameters_by_module(base: BaseSpec) -> dict[str, set[str]]:
    own: dict[str, set[str]] = defaultdict(set)
    for path in base.parameters:
        module, _, parameter = path.rpartition(".")
        own[module].add(parameter)
    return dict(own)


def _split(name: str, own: dict[str, set[str]], base: BaseSpec) -> tuple[str, str]:
    module, part, parameter = name.removeprefix(PREFIX).rpartition(_PART)
    if not name.startswith(PREFIX) or not part:
        raise PackageError(
            f"tensor {quote(name)} is unknown: an LN-tuning package holds {PREFIX}<module>{_PART}<parameter>"
        )
    if parameter not in own.get(module, ()):
        raise PackageError(
            f"tensor {quote(name)} matches no parameter of a norm, linear map or embedding of the base "
            f"{quote(base.name)}; the adapter was made for another architecture"
        )
    return module, parameter
