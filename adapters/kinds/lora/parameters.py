"""LoRA on bare parameters (``target_parameters``): the weights of routed experts, of routers, of linear maps.

peft wraps the module once for every targeted parameter, the first one innermost, and saves which parameter a factor
belongs to only by how deep it lies. Before 0.19.1 it took the dimensions of experts in the order they are stored in, so
that the factors of most architectures are swapped: ``delta = (lora_A^T lora_B^T)`` of a weight [out, in].
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

from adapters.base_spec import BaseSpec
from adapters.errors import PackageError, UnsupportedKindError
from adapters.kinds.lora.config import LoraConfig
from adapters.kinds.lora.modules import check_factor, finite_factor, rank_and_scale
from adapters.kinds.patterns import PatternMatcher
from adapters.kinds.saved_adapter import tensor_name
from adapters.ops import LowRank, Op
from adapters.ops.replace import ReplaceParameters
from adapters.ops.routed_experts import ExpertLowRank
from adapters.quoting import quote

_SETTLED = (0, 19, 1, 0)  # the first release of peft that saves A over inputs whatever the architecture
ALIGNED = 8  # CUDA's grouped product reads rows of 16 bytes


def compile_parameters(
    tensors: Mapping[str, Tensor], base: BaseSpec, config: LoraConfig, matcher: PatternMatcher
) -> tuple[dict[str, Op], dict[str, Tensor]]:
    """Ops of the parameters that ``config.target_parameters`` names, and the tensors that are not theirs.

    Semantics: experts get ``ExpertLowRank``, with the scale folded into ``b``; a router gets ``ReplaceParameters``
    with its weight plus the update, as it gives more than a linear map; linear maps get ``LowRank``.
    Shape: with E experts ``lora_A.weight`` [E * r, in_features], ``lora_B.weight`` [out_features, r * E]: experts
    come first in A, last in B. Other parameters as in LoRA on modules.
    """
    rest = dict(tensors)
    ops: dict[str, Op] = {}
    wrappers = _wrappers(base, config)
    factors = {
        parameter: (
            _take(rest, parameter, tensor_name(wrapper, "lora_A.weight")),
            _take(rest, parameter, tensor_name(wrapper, "lora_B.weight")),
        )
        for parameter, wrapper in wrappers.items()
    }
    is_swapped = _are_swapped(factors, base, config)
    for parameter, wrapper in wrappers.items():
        a, b = factors[parameter]
        if is_swapped and parameter in base.experts:
            a, b = _unswapped(a, b, base.experts[parameter][0])
        r, scale = rank_and_scale(parameter, config, matcher)
        module = parameter.rpartition(".")[0]
        count, in_features, out_features = _shape(parameter, base)
        check_factor(tensor_name(wrapper, "lora_A.weight"), a, (count * r, in_features), a.shape[-1:] != (in_features,))
        check_factor(
            tensor_name(wrapper, "lora_B.weight"), b, (out_features, r * count), b.shape[:1] != (out_features,)
        )
        scaled = finite_factor(tensor_name(wrapper, "lora_B.weight"), b.float() * scale)
        if parameter in base.experts:
            ops[parameter] = _experts(a.float(), scaled, count)
        elif module in base.routers:
            ops[module] = ReplaceParameters({"weight": base.weight(module) + scaled @ a.float()})
        else:
            ops[module] = LowRank(a.float().T, scaled.T.contiguous())
    return ops, rest


def _are_swapped(factors: Mapping[str, tuple[Tensor, Tensor]], base: BaseSpec, config: LoraConfig) -> bool:
    """Whether the factors of experts lie as an older peft saved them. PackageError when nothing tells."""
    if _version(config.peft_version) >= _SETTLED:
        return False
    layouts = set[bool]()
    experts = [parameter for parameter in factors if parameter in base.experts]
    for parameter in experts:
        _, in_features, out_features = base.experts[parameter]
        a, b = factors[parameter]
        sides = a.shape[-1:] + b.shape[:1]
        if in_features != out_features and sorted(sides) == sorted((in_features, out_features)):
            layouts.add(sides == (out_features, in_features))
    if len(layouts) == 1:
        return layouts.pop()
    if experts and not layouts and all(base.experts[p][1] == base.experts[p][2] for p in experts):
        raise UnsupportedKindError(
            f"adapter_config.json says peft_version {quote(config.peft_version or 'none')}: before 0.19.1 peft saved "
            f"factors of experts in either order, and {quote(experts[0])} has as many inputs as outputs, so that "
            "nothing tells which. Set peft_version to 0.19.1 if lora_A reads the inputs, else train with a newer peft"
        )
    return False


def _version(text: str | None) -> tuple[int, ...]:
    """A version of peft as numbers; one of development counts as the release before."""
    found = re.match(r"(\d{1,6})\.(\d{1,6})\.(\d{1,6})(.*)", text or "", re.DOTALL)
    return (*map(int, found.groups()[:3]), -1 if found[4] else 0) if found else ()


def _unswapped(a: Tensor, b: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Factors of [count] experts that lie the other way. Other ranks or counts are left for the checks of shapes.

    Shape: ``a`` [count * r, out], ``b`` [in, r * count]; result [count * r, in], [out, r * count].
    """
    if a.dim() != 2 or b.dim() != 2 or a.shape[0] % count or b.shape[1] != a.shape[0]:
        return a, b
    rank = a.shape[0] // count
    down = b.view(len(b), rank, count).permute(2, 1, 0).reshape(count * rank, len(b))
    up = a.view(count, rank, -1).permute(2, 1, 0).reshape(-1, rank * count)
    return down, up


def _wrappers(base: BaseSpec, config: LoraConfig) -> dict[str, str]:
    """For each targeted parameter, the module path under which peft saves its factors."""
    known = [*base.experts, *(f"{module}.weight" for module in (*base.routers, *base.linears))]
    by_module: dict[str, list[str]] = defaultdict(list)
    for parameter in known:
        if any(parameter == target or parameter.endswith(f".{target}") for target in config.target_parameters or []):
            by_module[parameter.rpartition(".")[0]].append(parameter)
    return {
        parameter: module + ".base_layer" * (len(parameters) - 1 - depth)
        for module, parameters in by_module.items()
        for depth, parameter in enumerate(parameters)
    }


def _take(tensors: dict[str, Tensor], parameter: str, name: str) -> Tensor:
    if name not in tensors:
        raise PackageError(
            f"tensor {quote(name)} is missing: target_parameters names {quote(parameter)} "
            f"({len(tensors)} tensors of other names are there; is the package complete?)"
        )
    return tensors.pop(name)


def _shape(parameter: str, base: BaseSpec) -> tuple[int, int, int]:
    """(num_experts, in_features, out_features); what is no expert counts as one."""
    if parameter in base.experts:
        return base.experts[parameter]
    module = parameter.rpartition(".")[0]
    out_features, in_features = base.routers[module] if module in base.routers else base.linears[module]
    return 1, in_features, out_features


def _experts(a: Tensor, b: Tensor, count: int) -> ExpertLowRank:
    """Shape: ``a`` [count * r, in_features], ``b`` [out_features, r * count]."""
    down = a.view(count, -1, a.shape[1]).transpose(1, 2)
    up = b.view(len(b), -1, count).permute(2, 1, 0)
    padding = -down.shape[2] % ALIGNED
    return ExpertLowRank(F.pad(down, (0, padding)).contiguous(), F.pad(up, (0, 0, 0, padding)).contiguous())
