"""GraLoRA: a low-rank update of each block of a weight, and one across all of them."""

from __future__ import annotations

from adapters.base import BaseSpec
from adapters.configs.factors import GraloraConfig
from adapters.errors import PackageError
from adapters.kinds.dense import check_update
from adapters.kinds.layers import Layer, sort_layers
from adapters.names import shown
from adapters.ops import Adapter, LowRank, Op
from adapters.ops.blocks import BlockLowRank
from adapters.package import AdapterPackage

_A, _B = "gralora_A", "gralora_B"
_ACROSS = ("gralora_A_general.weight", "gralora_B_general.weight")


def compile_gralora(package: AdapterPackage, base: BaseSpec) -> Adapter:
    """Ops of a GraLoRA package (https://huggingface.co/papers/2505.20355).

    Semantics: ``BlockLowRank``, and with ``hybrid_r`` a ``LowRank`` too, both times ``alpha / (r + hybrid_r)``.
    Shape: with k = gralora_k ``<module>.gralora_A`` [k, in_features / k, r], ``gralora_B`` [k, r, out_features / k];
    ``gralora_A_general.weight`` [hybrid_r, in_features], ``gralora_B_general.weight`` [out_features, hybrid_r].
    """
    config = package.config
    assert isinstance(config, GraloraConfig)
    layers = sort_layers(package, base, (_A, _B, *(_ACROSS if config.hybrid_r else ())))
    scale = config.alpha / (config.r + config.hybrid_r)

    def ops(layer: Layer) -> tuple[Op, ...]:
        k, out, in_ = config.gralora_k, layer.out_features, layer.in_features
        if out % k or in_ % k:
            raise PackageError(f"module {shown(layer.module)} [{out}, {in_}] is not made of {k} times {k} blocks")
        a, b = layer.tensor(_A, (k, in_ // k, config.r)), layer.tensor(_B, (k, config.r, out // k))
        made = [check_update(BlockLowRank(a, b * scale), layer.module)]
        if config.hybrid_r:
            a, b = layer.tensor(_ACROSS[0], (config.hybrid_r, in_)), layer.tensor(_ACROSS[1], (out, config.hybrid_r))
            made.append(check_update(LowRank(a.T.contiguous(), b.T.contiguous() * scale), layer.module))
        return tuple(made)

    return layers.compile(ops)
