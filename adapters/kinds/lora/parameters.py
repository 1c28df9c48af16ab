"""LoRA on bare parameters (``target_parameters``): the weights of routed experts, of routers, of linear maps.

peft wraps the module once for every targeted parameter, the first one innermost, and saves which parameter a factor
belongs to only by how deep it lies.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

from adapters.base_spec import BaseSpec
from adapters.errors import PackageError
from adapters.kinds.lora.config import LoraConfig
from adapters.kinds.lora.modules import check_factor, finite_factor, rank_and_scale
from adapters.kinds.patterns import PatternMatcher
from adapters.kinds.saved_adapter import tensor_name
from adapters.ops import LowRank, Op
from adapters.ops.replace import ReplaceParameters
from adapters.ops.routed_experts import ExpertLowRank
from adapters.quoting import quote

_ALIGNED = 8  # CUDA's grouped product reads rows of 16 bytes


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
    for parameter, wrapper in _wrappers(base, config).items():
        a = _take(rest, parameter, tensor_name(wrapper, "lora_A.weight"))
        b = _take(rest, parameter, tensor_name(wrapper, "lora_B.weight"))
        r, scale = rank_and_scale(parameter, config, matcher)
        module = parameter.rpartition(".")[0]
        count, in_features, out_features = _shape(parameter, base)
        check_factor(tensor_name(wrapper, "lora_A.weight"), a, (count * r, in_features), a.shape[-1] != in_features)
        check_factor(
            tensor_name(wrapper, "lora_B.weight"), b, (out_features, r * count), b.shape[:1] != (out_features,)
        )
        scaled = finite_factor(tensor_name(wrapper, "lora_B.weight"), b.float() * scale)
        if parameter in base.experts:
            ops[parameter] = _experts(a.float(), scaled, count)
        elif module in base.routers:
            ops[module] = ReplaceParameters({"weight": base.weight(module) + scaled @ a.float()})
        else:
            ops[module] = LowRank(a.float().T.contiguous(), scaled.T.contiguous())
    return ops, rest


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
    padding = -down.shape[2] % _ALIGNED
    return ExpertLowRank(F.pad(down, (0, padding)).contiguous(), F.pad(up, (0, 0, 0, padding)).contiguous())
