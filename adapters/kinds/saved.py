"""Modules that an adapter was saved with whole, beside what its kind trains.

There are two sorts: ``modules_to_save``, which peft lets stand in the place of the base's module; and embedding layers
that peft saves because their vocabulary changed or because they are adapted, and loads over the base's own. Their
tensors are named as the base's parameters, sometimes with a part that says how peft wrapped the module.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from adapters.base import BaseSpec
from adapters.configs.prompt import PromptLearningConfig
from adapters.configs.targets import TargetedConfig
from adapters.errors import PackageError, UnsupportedKindError
from adapters.kinds.names import PREFIX
from adapters.kinds.saved_names import Found, Sorter, places, wanted_modules
from adapters.kinds.tables import Table, base_size, compare_table, table_ops
from adapters.kinds.whole import replacement
from adapters.names import shown
from adapters.ops import Op
from adapters.package import AdapterPackage


@dataclass(frozen=True, eq=False)
class Saved:
    """``ops`` of the modules saved whole, vocabulary ``sizes`` of those with one, and the package without them."""

    rest: AdapterPackage
    ops: Mapping[str, tuple[Op, ...]] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)


def take_saved(package: AdapterPackage, base: BaseSpec) -> Saved:
    """Split a package into the modules that it was saved with, and the tensors of its kind. Raises PackageError."""
    config = package.config
    if isinstance(config, PromptLearningConfig):
        sorter = Sorter(base, "base_model.", {})
    elif isinstance(config, TargetedConfig):
        sorter = Sorter(base, PREFIX, wanted_modules(config.modules_to_save or (), base))
    else:
        return Saved(package)
    is_tying = isinstance(config, TargetedConfig) and config.ensure_weight_tying and base.tied
    if is_tying and base.embedding in sorter.wanted:
        if base.head in base.biases:
            raise UnsupportedKindError("ensure_weight_tying is not served for an output head with a bias")
        sorter.wanted[base.head] = sorter.wanted[base.embedding]
    sorter.leaves_biases = getattr(config, "bias", "none") != "none"
    rest = {name: tensor for name, tensor in package.tensors.items() if not sorter.take(name, tensor)}
    sorter.check_complete()
    sorter.check_rest(rest)
    if is_tying:
        _share(sorter.saved, base, "ensure_weight_tying is set")
    ops, sizes = _compile(sorter, base)
    return Saved(replace(package, tensors=rest), ops, sizes)


def _share(found: Found, base: BaseSpec, why: str) -> None:
    """Let embedding and head have one weight. PackageError when the package holds two different ones."""
    weights = [found[module]["weight"] for module in places(base) if "weight" in found.get(module, {})]
    if len(weights) == 2 and not torch.equal(*weights):
        raise PackageError(
            f"the package holds different weights for the embedding and the head, which are one in the base "
            f"{shown(base.name)} ({why}); peft would use whichever it loads last"
        )
    for module in places(base) if weights else ():
        found[module]["weight"] = weights[0]


def _compile(sorter: Sorter, base: BaseSpec) -> tuple[dict[str, tuple[Op, ...]], dict[str, int]]:
    ops: dict[str, tuple[Op, ...]] = {}
    sizes: dict[str, int] = {}
    over = sorter.over
    if base.tied and over:
        _share(over, base, "its config ties them")
    tables: dict[int, Table] = {}
    for module in places(base):
        given = sorter.saved[module] if module in sorter.wanted else over.get(module, {})
        if "weight" not in given:
            if "bias" in given:
                raise PackageError(f"tensor {shown(f'{module}.bias')} stands alone; the module's weight is missing")
            continue
        weight = given["weight"]
        if id(weight) not in tables:
            tables[id(weight)] = compare_table(f"{sorter.prefix}{module}.weight", weight, module, base)
        table = tables[id(weight)]
        sizes[module] = table.size
        ops[module] = table_ops(table, _bias(module, given, table.size, base), module, base)
    for module, entry in sorter.saved.items():
        if module not in places(base) and entry:
            ops[module] = (replacement(module, entry, base),)
    return {module: listed for module, listed in ops.items() if listed}, sizes


def _bias(module: str, given: Mapping[str, Tensor], size: int, base: BaseSpec) -> Tensor | None:
    """What the head adds; None where it has no bias, as for every embedding."""
    if module not in base.biases:
        return None
    bias = given.get("bias", base.biases[module]).detach().to("cpu", torch.float32)
    if tuple(bias.shape) != (size,):
        raise PackageError(
            f"tensor {shown(f'{module}.bias')} has shape {list(bias.shape)}, expected [{size}], as the weight has rows "
            f"(the base {shown(base.name)} has {base_size(module, base)})"
        )
    return bias
