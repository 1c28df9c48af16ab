"""LoRA: alpha / r and rsLoRA scaling, rank_pattern, alpha_pattern, trained biases."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor

from adapters.base import BaseSpec
from adapters.configs.lora import LoraConfig
from adapters.errors import PackageError, UnsupportedKindError
from adapters.kinds.check import expect_shape
from adapters.kinds.names import PREFIX
from adapters.kinds.targets import check_targets, unknown_module
from adapters.names import shown
from adapters.ops import Adapter, Bias, LowRank, Op
from adapters.package import AdapterPackage
from adapters.patterns import PatternMatcher

_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<factor>[AB])\.weight")
_BIAS = re.compile(r"(?P<module>.+?)(\.base_layer)?\.bias")
_UNSERVED = {
    "lora_embedding_": "LoRA on an embedding",
    "lora_magnitude_vector": "DoRA",
    "lora_B.bias": "a bias on lora_B",
    "lora_velora": "VeLoRA",
    "embed_tokens.weight": "a saved embedding (was the vocabulary resized?)",
    "lm_head.weight": "a saved output head (was the vocabulary resized?)",
    "base_layer.weight": "LoRA on an embedding or the output head",
}


def compile_lora(package: AdapterPackage, base: BaseSpec) -> Adapter:
    """Ops of a LoRA package.

    Semantics: ``LowRank`` with the scale folded into ``b``; ``Bias`` with the trained bias minus the base's.
    Shape: ``<module>.lora_A.weight`` [r, in_features]; ``<module>.lora_B.weight`` [out_features, r].
    """
    config = package.config
    assert isinstance(config, LoraConfig)
    factors, biases = _sort(package.tensors, config)
    if not factors:
        raise PackageError("the package holds no LoRA tensors (base_model.model.<module>.lora_A.weight)")
    matcher = PatternMatcher(config)
    ops: dict[str, list[Op]] = defaultdict(list)
    for module, pair in factors.items():
        ops[module].append(_low_rank(module, pair, base, config, matcher))
    check_targets(set(factors), base, config, matcher, "lora_A.weight")
    for module, trained in biases.items():
        ops[module].append(_bias(module, trained, base))
    return Adapter(config.KIND, {module: tuple(listed) for module, listed in ops.items()})


def _sort(tensors: Mapping[str, Tensor], config: LoraConfig) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """Tensors by module: factors A and B, and trained biases. Raises for names that are neither."""
    factors: dict[str, dict[str, Tensor]] = defaultdict(dict)
    biases: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        short = name.removeprefix(PREFIX) if name.startswith(PREFIX) else ""
        if found := _FACTOR.fullmatch(short):
            factors[found["module"]][found["factor"]] = tensor
        elif (found := _BIAS.fullmatch(short)) and config.bias != "none" and ".lora_" not in short:
            if found["module"] in biases:
                raise PackageError(f"tensor {shown(name)}: the package holds two biases for this module")
            biases[found["module"]] = tensor
        else:
            _refuse(name)
    return factors, biases


def _refuse(name: str) -> None:
    for part, what in _UNSERVED.items():
        if part in name:
            raise UnsupportedKindError(f"tensor {shown(name)} belongs to {what}, which is not served")
    raise PackageError(
        f"tensor {shown(name)} is unknown: a LoRA package holds base_model.model.<module>.lora_A.weight and "
        "lora_B.weight, and biases only where its config's 'bias' says so"
    )


def _low_rank(
    module: str, pair: Mapping[str, Tensor], base: BaseSpec, config: LoraConfig, matcher: PatternMatcher
) -> LowRank:
    for factor in "AB":
        if factor not in pair:
            raise PackageError(f"tensor {shown(_key(module, factor))} is missing; its partner is there")
    if module not in base.linears:
        raise unknown_module(_key(module, "A"), module, base)
    out_features, in_features = base.linears[module]
    r = matcher.rank(module, config.r)
    a, b = pair["A"], pair["B"]
    _check_factor(_key(module, "A"), a, (r, in_features), a.shape[-1] != in_features)
    _check_factor(_key(module, "B"), b, (out_features, r), b.shape[:1] != (out_features,))
    scaled = b.float() * config.scale(r, matcher.alpha(module, config.lora_alpha))
    if not bool(torch.isfinite(scaled).all()):
        raise PackageError(f"tensor {shown(_key(module, 'B'))} times its scale is not finite; lora_alpha is too large")
    return LowRank(a.float().T.contiguous(), scaled.T.contiguous())


def _check_factor(name: str, tensor: Tensor, expected: tuple[int, int], is_other_base: bool) -> None:
    if is_other_base or tensor.dim() != 2:
        hint = "the shape suggests that the adapter was made for another base"
    else:
        hint = "the rank differs from what r and rank_pattern say in adapter_config.json"
    expect_shape(name, tensor, expected, hint)


def _bias(module: str, trained: Tensor, base: BaseSpec) -> Bias:
    name = f"{PREFIX}{module}.bias"
    if module not in base.biases:
        raise PackageError(
            f"tensor {shown(name)}: the module {shown(module)} of {shown(base.name)} has no bias; "
            "the adapter was made for another base"
        )
    own = base.biases[module].detach().to("cpu", torch.float32)
    expect_shape(name, trained, tuple(own.shape), "the shape suggests that the adapter was made for another base")
    return Bias(trained.float() - own)


def _key(module: str, factor: str) -> str:
    return f"{PREFIX}{module}.lora_{factor}.weight"
