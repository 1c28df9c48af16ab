"""MiSS: one small matrix for the sums of a linear map's input features."""

from __future__ import annotations

from torch import Tensor

from adapters.base_spec import BaseSpec
from adapters.errors import PackageError
from adapters.kinds.dense import check_memory, check_update, dense_bytes
from adapters.kinds.factors.config import MissConfig
from adapters.kinds.layers import Layer, sort_layers
from adapters.kinds.saved_adapter import SavedAdapter
from adapters.ops import Adapter, Op
from adapters.ops.matrices import Delta
from adapters.ops.products import BlockSum
from adapters.quoting import quote

_BLOCK = "miss_block"
_HINT = "r, mini_r and init_weights in adapter_config.json say so; or the adapter was made for another base"


def compile_miss(package: SavedAdapter, base: BaseSpec) -> Adapter:
    """Ops of a MiSS package (https://huggingface.co/papers/2409.15371).

    Semantics: ``y += s @ miss_block``, where ``s[j]`` sums the input features ``j, j + r, j + 2r, ...``. The columns of
    ``mini`` are repeated over the output features. ``bat`` changes the base's weight: with ``W`` cut into blocks
    [r, r], those of output block ``o`` become ``W + W B + B``, where ``B = miss_block[o]``.
    Shape: ``<module>.miss_block`` [r, out_features]; ``mini`` [r, mini_r]; ``bat`` [out_features / r, r, r].
    """
    config = package.config
    assert isinstance(config, MissConfig)
    layers = sort_layers(package, base, [_BLOCK])
    if config.init_weights == "bat":
        sizes = {it.module: dense_bytes(it.out_features, it.in_features) for it in layers.layers}
        check_memory(sizes, "MiSS 'bat'", package.limits)
        return layers.compile(lambda layer: (_update(layer, base.weight(layer.module), config.r),))
    return layers.compile(lambda layer: (_block_sum(layer, config),))


def _block_sum(layer: Layer, config: MissConfig) -> Op:
    if config.r > layer.in_features:
        raise PackageError(f"module {quote(layer.module)} has {layer.in_features} inputs, and r is {config.r}")
    width = config.mini_r if config.init_weights == "mini" else layer.out_features
    if layer.out_features % width:
        raise PackageError(
            f"module {quote(layer.module)} has {layer.out_features} outputs, no multiple of mini_r {width}"
        )
    return BlockSum(layer.tensor(_BLOCK, (config.r, width), _HINT), layer.out_features // width)


def _update(layer: Layer, weight: Tensor, r: int) -> Op:
    if layer.out_features % r or layer.in_features % r:
        raise PackageError(
            f"module {quote(layer.module)} [{layer.out_features}, {layer.in_features}] is not made of blocks of r {r}"
        )
    rows, cols = layer.out_features // r, layer.in_features // r
    block = layer.tensor(_BLOCK, (rows, r, r), _HINT)[:, None]  # [rows, 1, r, r]
    weight = weight.reshape(rows, r, cols, r).transpose(1, 2)  # [rows, cols, r, r]
    update = (weight @ block + block).transpose(1, 2).reshape(layer.out_features, layer.in_features)
    return check_update(Delta(update.T.contiguous()), layer.module)
