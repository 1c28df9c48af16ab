"""BOFT: the input of a linear map rotated by a butterfly of blocks, its output features scaled."""

from __future__ import annotations

import torch

from adapters.base import BaseSpec
from adapters.configs.rotation import BOFTConfig
from adapters.errors import PackageError
from adapters.kinds.biases import own_bias
from adapters.kinds.layers import Layer, sort_layers
from adapters.kinds.names import key, take
from adapters.kinds.rotation import cayley, finite
from adapters.names import shown
from adapters.ops import Adapter, Op
from adapters.ops.dora import Magnitude
from adapters.ops.rotate import RotateInput
from adapters.package import AdapterPackage

_ROTATIONS, _SCALE = "boft_R", "boft_s"
# The product of up to four factors weighs at most twice what they weigh, and in blocks of this size runs faster.
_MAX_MERGED_FACTORS, _MAX_MERGED_SIZE = 4, 64


def compile_boft(package: AdapterPackage, base: BaseSpec) -> Adapter:
    """Ops of a BOFT package (https://huggingface.co/papers/2311.06243).

    Semantics: ``y = s * (W (x R_m ... R_2 R_1)) + bias``. Each factor ``R_i`` rotates blocks of ``b`` features, which
    lie together in the first and ever farther apart in the others. The permutations that put them there are not
    saved, as they follow from ``b`` and ``i``.
    Shape: ``<module>.boft_R`` [m, in_features / b, b, b]; ``<module>.boft_s`` [out_features, 1].
    """
    config = package.config
    assert isinstance(config, BOFTConfig)

    def ops(layer: Layer) -> tuple[Op, ...]:
        return (*_rotations(layer, config), _scale(layer, base))

    return sort_layers(package, base, [_ROTATIONS, _SCALE]).compile(ops)


def _rotations(layer: Layer, config: BOFTConfig) -> list[Op]:
    factors, num, size = _layout(layer, config)
    hint = "boft_n_butterfly_factor, boft_block_size and boft_block_num say so; or the base is another one"
    matrices = layer.tensor(_ROTATIONS, (factors, num, size, size), hint).double().flatten(0, 1)
    changes = cayley(0.5 * (matrices - matrices.transpose(1, 2))).view(factors, num, size, size)
    ops = [RotateInput(changes[i].clone(), 2**i) for i in reversed(range(factors))]
    merged = size * 2 ** (factors - 1)
    if 1 < factors <= _MAX_MERGED_FACTORS and merged <= _MAX_MERGED_SIZE:
        ops = [_product(ops, merged, layer.in_features)]
    return [op.map(lambda change: finite(key(layer.module, _ROTATIONS), change)) for op in ops]


def _product(ops: list[RotateInput], size: int, features: int) -> RotateInput:
    """All factors as one: together they mix features within blocks of ``size`` that lie side by side."""
    rows = torch.eye(size, dtype=torch.double).repeat(1, features // size)
    for op in ops:
        rows = rows + op.map(lambda change: change[None]).update(rows[None])[0]
    blocks = rows.view(size, -1, size).transpose(0, 1)
    return RotateInput((blocks - torch.eye(size)).contiguous())


def _layout(layer: Layer, config: BOFTConfig) -> tuple[int, int, int]:
    """Number of factors, number of blocks in each, block size."""
    num = config.boft_block_num or layer.in_features // config.boft_block_size
    size = config.boft_block_size or layer.in_features // config.boft_block_num
    if num * size != layer.in_features:
        raise PackageError(
            f"module {shown(layer.module)} has {layer.in_features} inputs, no multiple of boft_block_size or "
            "boft_block_num; was the adapter made for another base?"
        )
    if take(layer.module, layer.found, _ROTATIONS).shape[:1] == (1,):
        return 1, num, size  # what peft trains where its extension does not build
    factors = config.boft_n_butterfly_factor
    if factors > 1 and (size % 2 or num % 2 ** (factors - 1)):
        raise PackageError(
            f"module {shown(layer.module)}: {num} blocks of {size} make no butterfly of {factors} factors, for which "
            f"blocks must be of even size, and their number a multiple of {2 ** (factors - 1)}"
        )
    return factors, num, size


def _scale(layer: Layer, base: BaseSpec) -> Op:
    excess = layer.tensor(_SCALE, (layer.out_features, 1)).flatten() - 1
    bias = own_bias(layer.module, base) if layer.module in base.biases else None
    return Magnitude(excess, None if bias is None else -excess * bias)
