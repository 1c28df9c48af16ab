"""The names of tensors of modules that were saved whole, as peft writes them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

from adapters.base import BaseSpec
from adapters.errors import PackageError
from adapters.names import shown

_COPY = re.compile(r"(?P<module>.+?)\.modules_to_save(\.default)?\.(?P<rest>.+)")  # the same tensor once more
_UNUSED = re.compile(r"(?P<module>.+?)\.original_module\.(?P<rest>.+)")  # the base's own, which stands aside
_WRAPPED = re.compile(r"(?P<module>.+?)(\.token_adapter)?\.base_layer\.(?P<rest>weight|bias)")
Found = dict[str, dict[str, Tensor]]


class Sorter:
    """Sorts tensors by name: ``saved`` in the place of a module, ``over`` the base's own embedding layers."""

    def __init__(self, base: BaseSpec, prefix: str, wanted: dict[str, str]) -> None:
        self.base, self.prefix, self.wanted = base, prefix, wanted
        self.leaves_biases = False
        self.saved: Found = defaultdict(dict)
        self.over: Found = defaultdict(dict)

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
            return not (leaf == "bias" and self.leaves_biases) and _put(self.over, module, leaf, tensor, name)
        return False

    def check_complete(self) -> None:
        """PackageError when a parameter of a wanted module is missing."""
        for path in self.base.parameters:
            module, _, leaf = path.rpartition(".")
            if module not in self.wanted or leaf in self.saved[module]:
                continue
            raise PackageError(
                f"tensor {shown(self.prefix + path)} is missing: modules_to_save names {shown(self.wanted[module])}"
            )

    def check_rest(self, rest: Iterable[str]) -> None:
        """PackageError for tensors of modules that are saved whole and yet are something else."""
        for name in rest:
            for entry in set(self.wanted.values()):
                if any(path.endswith(entry) for path in _paths(name.removeprefix(self.prefix))[:-1]):
                    raise PackageError(
                        f"tensor {shown(name)} belongs to a module that modules_to_save ({shown(entry)}) replaces: "
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
        raise PackageError(f"tensor {shown(name)}: the package holds another one for the same parameter")
    return True


def wanted_modules(names: Iterable[str], base: BaseSpec) -> dict[str, str]:
    """The modules that ``modules_to_save`` means, each with the entry that means it.

    As in peft an entry means every module whose path ends with it, in the middle of a name too (``norm`` means
    ``input_layernorm``), and everything inside of that module.
    """
    wanted: dict[str, str] = {}
    modules = dict.fromkeys(path.rpartition(".")[0] for path in base.parameters)
    for name in names:
        hits = [module for module in modules if name and any(path.endswith(name) for path in _paths(module))]
        if not hits:
            raise PackageError(
                f"adapter_config.json: modules_to_save names {shown(name)}, which matches no linear map, norm or "
                f"embedding of the base {shown(base.name)}; the adapter was made for another architecture, or the "
                "entry should be removed"
            )
        wanted |= dict.fromkeys(hits, name)
    return wanted


def _paths(module: str) -> list[str]:
    """The module's path and those of all modules around it."""
    parts = module.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]
