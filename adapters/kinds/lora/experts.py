"""LoRA on every expert's own linear maps, as peft saves it where experts are modules (transformers 4).

A base has the experts of a layer in one parameter for each projection, gate and up in one of both. peft converts such
packages when it loads them; here they become what they were trained as, which is the same wherever peft keeps that.
Where it would scale them otherwise they are refused.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from adapters.base_spec import BaseSpec
from adapters.errors import PackageError, UnsupportedKindError
from adapters.kinds.config import PREFIX
from adapters.kinds.dense import BYTES, check_memory
from adapters.kinds.layers import unknown_module
from adapters.kinds.lora.config import LoraConfig
from adapters.kinds.lora.modules import check_factor, factor, finite_factor
from adapters.kinds.lora.parameters import ALIGNED
from adapters.kinds.patterns import PatternMatcher
from adapters.kinds.saved_adapter import tensor_name
from adapters.limits import PackageLimits
from adapters.ops import Op
from adapters.ops.replace import ReplaceParameters
from adapters.ops.routed_experts import ExpertLowRank
from adapters.quoting import quote

_TENSOR = re.compile(
    rf"{re.escape(PREFIX)}(?P<module>.+?\.(?:experts\.(?P<expert>[0-9]{{1,5}})\.(?P<leaf>\w+)|gate|router))"
    r"\.(?P<parameter>lora_.+)"
)
_LAYER = re.compile(r".*\.[0-9]+\.")  # the part of a name that no release of transformers changed
_GATE, _UP, _DOWN = 0, 1, 2
_ALL = slice(None)
_STYLES = ({"gate_proj": _GATE, "up_proj": _UP, "down_proj": _DOWN}, {"w1": _GATE, "w3": _UP, "w2": _DOWN})
_LEAVES = {leaf: role for style in _STYLES for leaf, role in style.items()}
_OPTIONS = (
    "use_dora", "lora_bias", "use_qalora", "use_bdlora", "alora_invocation_tokens", "velora_config",
    "monteclora_config",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class ExpertModules:
    """What a package has for experts and routers as modules: ``ops`` by the base's names; ``rest`` is for others.

    ``found`` are the modules that have tensors, by their saved names; ``known`` all that there are of their sort;
    ``silent`` the base's linear maps of their names, which need no tensors: peft drops those of such packages.
    """

    ops: dict[str, Op] = field(default_factory=dict)
    rest: dict[str, Tensor] = field(default_factory=dict)
    found: frozenset[str] = frozenset()
    known: frozenset[str] = frozenset()
    silent: frozenset[str] = frozenset()


def take_experts(
    tensors: Mapping[str, Tensor], base: BaseSpec, config: LoraConfig, matcher: PatternMatcher, limits: PackageLimits
) -> ExpertModules:
    """Ops of the experts and routers that ``tensors`` adapt as modules. Raises PackageError and UnsupportedKindError.

    Semantics: ``ExpertLowRank`` with gate's and up's factors side by side, each with its scale folded into ``b``, and
    zeros for experts without any; a router gets ``ReplaceParameters`` with its weight plus the update.
    Shape: ``<experts>.<e>.<projection>.lora_A.weight`` [r, in_features], ``lora_B.weight`` [out_features, r].
    """
    rest: dict[str, Tensor] = {}
    modules: dict[str, dict[str, Tensor]] = defaultdict(dict)
    names: dict[str, re.Match[str]] = {}
    for name, tensor in tensors.items():
        found = _TENSOR.fullmatch(name) if base.experts or base.routers else None
        if found is None or found["module"] in base.linears:
            rest[name] = tensor
            continue
        modules[found["module"]][found["parameter"]] = tensor
        names[found["module"]] = found
    if not modules:
        return ExpertModules(rest=rest)
    _check_options(next(iter(modules)), config)
    compiler = _Compiler(base, config, matcher)
    for module, parameters in modules.items():
        compiler.add(names[module], parameters)
    silent = (m for m in base.linears if compiler.factors and m.rpartition(".")[2] in _LEAVES)
    return ExpertModules(
        compiler.ops(limits), rest, frozenset(modules), frozenset(_known(names.values(), base)), frozenset(silent)
    )


def _check_options(module: str, config: LoraConfig) -> None:
    for option in _OPTIONS:
        if getattr(config, option):
            raise UnsupportedKindError(
                f"adapter_config.json sets {option} for {quote(module)}, part of a parameter on this base: peft "
                "defines no meaning for that; train without it"
            )


@dataclass(frozen=True, eq=False)
class _Factors:
    """An expert's update of some output features. Shape: ``a`` [r, in_features]; ``b`` [len of ``features``, r]."""

    expert: int
    features: slice
    a: Tensor
    b: Tensor


class _Compiler:
    def __init__(self, base: BaseSpec, config: LoraConfig, matcher: PatternMatcher) -> None:
        self.factors: dict[str, list[_Factors]] = defaultdict(list)
        self._taken: set[tuple[str, int, int | None]] = set()
        self._routers: dict[str, Op] = {}
        self._base, self._config, self._matcher = base, config, matcher
        self._containers = _containers(base)

    def add(self, name: re.Match[str], found: Mapping[str, Tensor]) -> None:
        """Take the tensors ``found`` of the module ``name``."""
        module = name["module"]
        for parameter in found:
            if parameter not in ("lora_A.weight", "lora_B.weight"):
                raise PackageError(
                    f"tensor {quote(tensor_name(module, parameter))} is unknown for an expert or a router"
                )
        if name["expert"] is None:
            self._add_router(module, found)
        else:
            self._add_expert(name, found)

    def ops(self, limits: PackageLimits) -> dict[str, Op]:
        """Everything that was added, by the base's name."""
        self._check_padding(limits)
        joined = {
            parameter: _join(factors, self._base.experts[parameter]) for parameter, factors in self.factors.items()
        }
        return {**joined, **self._routers}

    def _add_router(self, module: str, found: Mapping[str, Tensor]) -> None:
        router = _same_layer(module, self._base.routers)
        if router is None:
            raise unknown_module(tensor_name(module, next(iter(found))), module, self._base)
        out_features, in_features = self._base.routers[router]
        a, b = self._scaled(module, found, (out_features, in_features), f"{router}.weight")
        self._routers[router] = ReplaceParameters({"weight": self._base.weight(router) + b @ a})

    def _add_expert(self, name: re.Match[str], found: Mapping[str, Tensor]) -> None:
        module, expert = name["module"], int(name["expert"])
        container = _same_layer(module.rpartition(".experts.")[0] + ".experts", self._containers)
        parameter, features = _place(container, _LEAVES.get(name["leaf"]), self._base)
        count, in_features, total = self._base.experts.get(parameter, (0, 0, 0))
        if expert >= count:
            raise unknown_module(tensor_name(module, next(iter(found))), module, self._base)
        is_fused = features is not _ALL
        if is_fused and self._config.use_rslora:
            raise _other_scale(module, "use_rslora", self._config)
        shape = total // 2 if is_fused else total, in_features
        a, b = self._scaled(module, found, shape, "" if is_fused else parameter)
        taken = (parameter, expert, features.start)
        if taken in self._taken:
            raise PackageError(f"the package holds two updates of expert {expert} in {quote(parameter)}")
        self._taken.add(taken)
        self.factors[parameter].append(_Factors(expert, features, a, b))

    def _scaled(
        self, module: str, found: Mapping[str, Tensor], shape: tuple[int, int], converted: str
    ) -> tuple[Tensor, Tensor]:
        """A and B with the scale of training; ``converted`` is the name by which peft looks for an alpha, if any."""
        config, matcher = self._config, self._matcher
        a, b = factor(module, found, "lora_A.weight"), factor(module, found, "lora_B.weight")
        r, alpha = matcher.rank(module, config.r), matcher.alpha(module, config.lora_alpha)
        if alpha != (matcher.alpha(converted, config.lora_alpha) if converted else config.lora_alpha):
            raise _other_scale(module, "alpha_pattern", config)
        check_factor(tensor_name(module, "lora_A.weight"), a, (r, shape[1]), a.shape[-1:] != shape[1:])
        check_factor(tensor_name(module, "lora_B.weight"), b, (shape[0], r), b.shape[:1] != shape[:1])
        return a.float(), finite_factor(tensor_name(module, "lora_B.weight"), b.float() * config.scale(r, alpha))

    def _check_padding(self, limits: PackageLimits) -> None:
        """Experts without factors, or with fewer, are filled with zeros: a small package may not grow without end."""
        sizes: dict[str, int] = {}
        for parameter, factors in self.factors.items():
            count, in_features, out_features = self._base.experts[parameter]
            own = sum(part.a.shape[0] * (in_features + out_features) for part in factors)
            sizes[parameter] = BYTES * (count * _rank(factors) * (in_features + out_features) - own)
        check_memory(sizes, "LoRA", limits)


def _containers(base: BaseSpec) -> list[str]:
    return list(dict.fromkeys(parameter.rpartition(".")[0] for parameter in base.experts))


def _same_layer(saved: str, places: Collection[str]) -> str | None:
    """The one of ``places`` that ``saved`` names, be it by the name of another release of transformers."""
    if saved in places:
        return saved
    layer = _LAYER.match(saved)
    near = [place for place in places if layer and place.startswith(layer[0])]
    return near[0] if len(near) == 1 else None


def _place(container: str | None, role: int | None, base: BaseSpec) -> tuple[str, slice]:
    """The parameter of ``container`` that has a projection, and which of its output features are those."""
    fused = f"{container}.gate_up_proj"
    if role == _DOWN:
        return f"{container}.down_proj", _ALL
    if role is None or fused not in base.experts:
        return f"{container}.up_proj" if role == _UP else "", _ALL
    half = base.experts[fused][2] // 2
    return fused, slice(role, None, 2) if fused in base.interleaved else slice(role * half, (role + 1) * half)


def _known(names: Iterable[re.Match[str]], base: BaseSpec) -> Iterator[str]:
    """All modules that the base would have, were they named as ``names`` are."""
    experts, routers = set[tuple[str, str]](), set[str]()
    for name in names:
        short = _LAYER.sub("", name["module"].rpartition(".experts.")[0] or name["module"], count=1)
        if name["expert"] is None:
            routers.add(short)
        else:
            experts |= {(short, leaf) for style in _STYLES if name["leaf"] in style for leaf in style}
    for router in base.routers:
        yield from (_in_layer(router, short) for short in routers)
    for container in _containers(base):
        for short, leaf in experts:
            parameter, _ = _place(container, _LEAVES[leaf], base)
            count = base.experts.get(parameter, (0, 0, 0))[0]
            yield from (f"{_in_layer(container, short)}.experts.{expert}.{leaf}" for expert in range(count))


def _in_layer(place: str, short: str) -> str:
    layer = _LAYER.match(place)
    return f"{layer[0] if layer else ''}{short}"


def _rank(factors: Iterable[_Factors]) -> int:
    """The rank that has room for all factors of any expert, side by side."""
    ranks: dict[int, int] = defaultdict(int)
    for part in factors:
        ranks[part.expert] += len(part.a)
    return max(ranks.values())


def _join(factors: Sequence[_Factors], shape: tuple[int, int, int]) -> ExpertLowRank:
    count, in_features, out_features = shape
    rank = _rank(factors)
    rank += -rank % ALIGNED
    a, b = torch.zeros(count, in_features, rank), torch.zeros(count, rank, out_features)
    used: dict[int, int] = defaultdict(int)
    for part in factors:
        start = used[part.expert]
        stop = used[part.expert] = start + len(part.a)
        a[part.expert, :, start:stop] = part.a.T
        b[part.expert, start:stop, part.features] = part.b.T
    return ExpertLowRank(a, b)


def _other_scale(module: str, key: str, config: LoraConfig) -> UnsupportedKindError:
    same = config.lora_alpha * math.sqrt(config.r)
    how = {
        "use_rslora": f"Set use_rslora to false and lora_alpha to lora_alpha * sqrt(r), {same:.9g} for r {config.r}",
        "alpha_pattern": "Multiply their lora_B by their alpha over lora_alpha and drop them from alpha_pattern",
    }
    return UnsupportedKindError(
        f"adapter_config.json sets {key} for {quote(module)}, a part of a parameter on this base: peft would scale it "
        f"otherwise than in training. {how[key]}, which is the same adapter"
    )
