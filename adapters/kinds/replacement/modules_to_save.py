"""Modules that an adapter was saved with whole, beside what its kind trains.

There are two sorts: ``modules_to_save``, which peft lets stand in the place of the base's module; and embedding
layers that peft saves because their vocabulary changed or because they are adapted, and loads over the base's own.
Their tensors are named as the base's parameters, sometimes with a part that says how peft wrapped the module.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from adapters.base_spec import BaseSpec
from adapters.checkpoints import checkpoint
from adapters.errors import PackageError, UnsupportedKindError
from adapters.kinds.config import TargetedConfig
from adapters.kinds.replacement.vocabulary import VocabularyTable, base_size, compare_table, table_ops
from adapters.kinds.saved_adapter import OTHER_BASE, SavedAdapter, expect_shape
from adapters.ops import Op
from adapters.ops.replace import ReplaceLinear, ReplaceParameters
from adapters.quoting import quote


def replacement(module: str, given: Mapping[str, Tensor], base: BaseSpec) -> Op:
    """The op that lets rows use ``given`` (by parameter name: weight, bias) for ``module``; others stay the base's.

    Shape: as the base stores them. Raises PackageError for a parameter that the base's module does not have.
    """
    for name, tensor in given.items():
        parameter = f"{module}.{name}"
        if parameter not in base.parameters:
            raise PackageError(
                f"tensor {quote(parameter)} matches no parameter of the base {quote(base.name)}: the adapter was made "
                "for another base, or for a part that cannot be replaced (only linear maps, norms and embeddings can)"
            )
        expect_shape(parameter, tensor, base.parameters[parameter], OTHER_BASE)
    if module not in base.linears:
        return ReplaceParameters({name: tensor.float() for name, tensor in given.items()})
    weight = given["weight"].float() if "weight" in given else base.weight(module)
    if "weight" in given and module in base.transposed:
        weight = weight.T.contiguous()
    bias = given.get("bias", base.biases.get(module))
    return ReplaceLinear(weight, None if bias is None else bias.detach().to("cpu").float())


_COPY = re.compile(r"(?P<module>.+?)\.modules_to_save(\.default)?\.(?P<rest>.+)")  # the same tensor once more
_UNUSED = re.compile(r"(?P<module>.+?)\.original_module\.(?P<rest>.+)")  # the base's own, which stands aside
_WRAPPED = re.compile(r"(?P<module>.+?)(\.token_adapter)?\.base_layer\.(?P<rest>weight|bias)")
Found = dict[str, dict[str, Tensor]]


class SavedModuleSorter:
    """Sorts tensors by name: ``saved`` in the place of a module, ``base_embeddings`` over the base's own."""

    def __init__(self, base: BaseSpec, prefix: str, wanted: dict[str, str]) -> None:
        self.base, self.prefix, self.wanted = base, prefix, wanted
        self.leaves_biases = False
        self.saved: Found = defaultdict(dict)
        self.base_embeddings: Found = defaultdict(dict)

    def take(self, name: str, tensor: Tensor) -> bool:
        """Whether the tensor is part of a module saved whole; then it is kept here, or dropped when it has no use."""
        short = name.removeprefix(self.prefix) if name.startswith(self.prefix) else ""
        if found := _UNUSED.fullmatch(short):
            return self._module(found) in self.wanted
        found = _COPY.fullmatch(short)
        path = f"{found['module']}.{found['rest']}" if found else short
        module, _, leaf = path.rpartition(".")
        if module in self.wanted and path in self.base.parameters:
            return _put(self.saved, module, leaf, tensor, name)
        found = _WRAPPED.fullmatch(short)
        module, leaf = (found["module"], found["rest"]) if found else (module, leaf)
        if module in places(self.base) and f"{module}.{leaf}" in self.base.parameters:
            return not (leaf == "bias" and self.leaves_biases) and _put(
                self.base_embeddings, module, leaf, tensor, name
            )
        return False

    def check_complete(self) -> None:
        """PackageError when a parameter of a wanted module is missing."""
        for path in self.base.parameters:
            module, _, leaf = path.rpartition(".")
            if module not in self.wanted or leaf in self.saved[module]:
                continue
            raise PackageError(
                f"tensor {quote(self.prefix + path)} is missing: modules_to_save names {quote(self.wanted[module])}"
            )

    def check_rest(self, rest: Iterable[str]) -> None:
        """PackageError for tensors of modules that are saved whole and yet are something else."""
        for name in rest:
            checkpoint()
            for entry in set(self.wanted.values()):
                if any(path.endswith(entry) for path in _paths(name.removeprefix(self.prefix))[:-1]):
                    raise PackageError(
                        f"tensor {quote(name)} belongs to a module that modules_to_save ({quote(entry)}) replaces: "
                        "either that module is adapted as well, or it is none that can be replaced (linear maps, norms "
                        "and embeddings can)"
                    )

    @staticmethod
    def _module(found: re.Match[str]) -> str:
        return f"{found['module']}.{found['rest']}".rpartition(".")[0]


def places(base: BaseSpec) -> list[str]:
    """The modules that have a vocabulary: the input embedding, where adapters can act on it, and the output head."""
    return [module for module in (base.embedding, base.head) if module]


def _put(found: Found, module: str, leaf: str, tensor: Tensor, name: str) -> bool:
    known = found[module].setdefault(leaf, tensor)
    if known is not tensor and not torch.equal(known, tensor):
        raise PackageError(f"tensor {quote(name)}: the package holds another one for the same parameter")
    return True


def wanted_modules(names: Iterable[str], base: BaseSpec) -> dict[str, str]:
    """The modules that ``modules_to_save`` means, each with the entry that means it.

    As in peft an entry means every module whose path ends with it, in the middle of a name too (``norm`` means
    ``input_layernorm``), and everything inside of that module.
    """
    wanted: dict[str, str] = {}
    modules = dict.fromkeys(path.rpartition(".")[0] for path in base.parameters)
    for name in names:
        checkpoint()
        hits = [module for module in modules if name and any(path.endswith(name) for path in _paths(module))]
        if not hits:
            raise PackageError(
                f"adapter_config.json: modules_to_save names {quote(name)}, which matches no linear map, norm or "
                f"embedding of the base {quote(base.name)}; the adapter was made for another architecture, or the "
                "entry should be removed"
            )
        wanted |= dict.fromkeys(hits, name)
    return wanted


def _paths(module: str) -> list[str]:
    """The module's path and those of all modules around it."""
    parts = module.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


@dataclass(frozen=True, eq=False)
class SavedModules:
    """``ops`` of the modules saved whole, vocabulary ``sizes`` of those with one, and the package without them."""

    rest: SavedAdapter
    ops: Mapping[str, tuple[Op, ...]] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)


def take_saved_modules(package: SavedAdapter, base: BaseSpec) -> SavedModules:
    """Split a package into the modules that it was saved with, and the tensors of its kind. Raises PackageError."""
    config = package.config
    if config.WHOLE_PREFIX is None:
        return SavedModules(package)
    names = config.modules_to_save if isinstance(config, TargetedConfig) else None
    sorter = SavedModuleSorter(base, config.WHOLE_PREFIX, wanted_modules(names or (), base))
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
        share_weight(sorter.saved, base, _two_weights(base, "ensure_weight_tying is set"))
    ops, sizes = _compile_saved(sorter, base)
    return SavedModules(replace(package, tensors=rest), ops, sizes)


def share_weight(found: Found, base: BaseSpec, refusal: str) -> None:
    """Let embedding and head have one weight. PackageError, saying ``refusal``, for a package with two different ones.

    Training one of the two has trained the other where the base ties them.
    """
    weights = [found[module]["weight"] for module in places(base) if "weight" in found.get(module, {})]
    if len(weights) == 2 and not torch.equal(*weights):
        raise PackageError(refusal)
    for module in places(base) if weights else ():
        found[module]["weight"] = weights[0]


def _two_weights(base: BaseSpec, why: str) -> str:
    return (
        f"the package holds different weights for the embedding and the head, which are one in the base "
        f"{quote(base.name)} ({why}); peft would use whichever it loads last"
    )


def _compile_saved(sorter: SavedModuleSorter, base: BaseSpec) -> tuple[dict[str, tuple[Op, ...]], dict[str, int]]:
    ops: dict[str, tuple[Op, ...]] = {}
    sizes: dict[str, int] = {}
    over = sorter.base_embeddings
    if base.tied and over:
        share_weight(over, base, _two_weights(base, "its config ties them"))
    tables: dict[int, VocabularyTable] = {}
    for module in places(base):
        given = sorter.saved[module] if module in sorter.wanted else over.get(module, {})
        if "weight" not in given:
            if "bias" in given:
                raise PackageError(f"tensor {quote(f'{module}.bias')} stands alone; the module's weight is missing")
            continue
        weight = given["weight"]
        if id(weight) not in tables:
            tables[id(weight)] = compare_table(f"{sorter.prefix}{module}.weight", weight, module, base)
        table = tables[id(weight)]
        sizes[module] = table.size
        ops[module] = table_ops(table, _head_bias(module, given, table.size, base), module, base)
    for module, entry in sorter.saved.items():
        if module not in places(base) and entry:
            ops[module] = (replacement(module, entry, base),)
    return {module: listed for module, listed in ops.items() if listed}, sizes


def _head_bias(module: str, given: Mapping[str, Tensor], size: int, base: BaseSpec) -> Tensor | None:
    """What the head adds; None where it has no bias, as for every embedding."""
    if module not in base.biases:
        return None
    bias = given.get("bias", base.biases[module]).detach().to("cpu", torch.float32)
    if tuple(bias.shape) != (size,):
        raise PackageError(
            f"tensor {quote(f'{module}.bias')} has shape {list(bias.shape)}, expected [{size}], as the weight has rows "
            f"(the base {quote(base.name)} has {base_size(module, base)})"
        )
    return bias
