"""Which modules an adapter's tensors belong to, against what its configuration and the base say."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from adapters.base import BaseSpec
from adapters.configs.targets import TargetedConfig
from adapters.errors import PackageError
from adapters.kinds.names import key
from adapters.names import shown
from adapters.patterns import PatternMatcher


def check_targets(
    found: set[str],
    base: BaseSpec,
    config: TargetedConfig,
    matcher: PatternMatcher,
    parameter: str,
    *,
    others: Mapping[str, str] | None = None,
    exempt: Collection[str] = (),
) -> None:
    """Hold the modules that have tensors against those that the config targets, as peft would match them.

    ``parameter`` is the tensor that every adapted linear map has; ``others`` are further modules that the kind adapts,
    and such a tensor of each. ``exempt`` modules may be targeted or not. Raises PackageError.
    """
    parameters = dict.fromkeys(base.linears, parameter) | dict(others or {})
    wanted = matcher.targets(parameters)
    if wanted is None:
        return
    wanted.difference_update(exempt)
    if missing := sorted(wanted - found):
        raise PackageError(
            f"tensor {shown(key(missing[0], parameters[missing[0]]))} is missing: target_modules names this module "
            f"({len(missing)} of {len(wanted)} targeted modules have no tensors; is the package complete?)"
        )
    if extra := sorted(found - wanted):
        name = key(extra[0], parameters.get(extra[0], parameter))
        raise PackageError(
            f"tensor {shown(name)} belongs to a module that target_modules does not name, so peft would not apply it; "
            "correct target_modules in adapter_config.json"
        )
    listed = config.target_modules if isinstance(config.target_modules, list) else []
    for entry in listed:
        if not any(module == entry or module.endswith(f".{entry}") for module in parameters):
            raise PackageError(
                f"target_modules names {shown(entry)}, which matches no linear map of the base {shown(base.name)}; "
                "the adapter was made for another architecture, or the entry should be removed"
            )


def linear_shape(module: str, parameter: str, base: BaseSpec) -> tuple[int, int]:
    """(out_features, in_features) of a linear map that a package adapts. PackageError when the base has none."""
    if module not in base.linears:
        raise unknown_module(key(module, parameter), module, base)
    return base.linears[module]


def unknown_module(name: str, module: str, base: BaseSpec) -> PackageError:
    """What to raise for the tensor ``name`` of a ``module`` that the base does not have."""
    layer = re.search(r"\.(\d+)\.", module)
    if layer and len(layer[1]) < 6 and int(layer[1]) >= base.num_layers:
        why = f"the base has {base.num_layers} layers; the adapter was made for a deeper one"
    else:
        why = "its names suggest that the adapter was made for another architecture, or a part that is not adapted"
    return PackageError(f"tensor {shown(name)} matches no linear map of the base {shown(base.name)}: {why}")
