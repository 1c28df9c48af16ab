"""OFT and BOFT: a map's input (or the embedding's output) rotated in blocks, or by a butterfly of blocks."""

from __future__ import annotations

import torch
from torch import Tensor

from adapters.base_spec import BaseSpec
from adapters.errors import PackageError
from adapters.kinds.layers import Layer, own_bias, sort_layers
from adapters.kinds.rotation.cayley import cayley, cayley_series, finite_rotation, skew
from adapters.kinds.rotation.config import BOFTConfig, OFTConfig
from adapters.kinds.saved_adapter import SavedAdapter, require, tensor_name
from adapters.ops import Adapter, Op
from adapters.ops.activations import Magnitude
from adapters.ops.rotation import RotateInput, RotateOutput
from adapters.quoting import quote

_OFT_VECTORS, _OFT_EMBEDDED = "oft_R.weight", "oft_embedding_R.weight"


def compile_oft(package: SavedAdapter, base: BaseSpec) -> Adapter:
    """Ops of an OFT package (https://huggingface.co/papers/2306.07280).

    Semantics: ``y = W (x R) + bias``, where ``R`` has one rotation for each block of ``b`` features on its diagonal; of
    the embedding, ``y = E[token] R``.
    Shape: ``<module>.oft_R.weight`` [in_features / b, b (b - 1) / 2]; [1, b (b - 1) / 2] with ``block_share``; of the
    embedding ``oft_embedding_R.weight``, with hidden_size for in_features.
    """
    config = package.config
    assert isinstance(config, OFTConfig)

    def ops(layer: Layer) -> tuple[Op, ...]:
        if len(layer.found) > 1:
            raise PackageError(
                f"module {quote(layer.module)} has both {_OFT_VECTORS} and {_OFT_EMBEDDED}; peft saves one"
            )
        if layer.module == base.embedding:
            return (RotateOutput(_block_rotations(layer, _OFT_EMBEDDED, layer.out_features, config)),)
        return (RotateInput(_block_rotations(layer, _OFT_VECTORS, layer.in_features, config)),)

    return sort_layers(package, base, [_OFT_VECTORS], _OFT_EMBEDDED).compile(ops)


def _block_rotations(layer: Layer, parameter: str, features: int, config: OFTConfig) -> Tensor:
    """The rotation of each block of ``features``, minus the identity. Raises PackageError."""
    size, name = _block_size(features, config), tensor_name(layer.module, parameter)
    blocks = 1 if config.block_share else features // size
    hint = "r, oft_block_size and block_share in adapter_config.json say so; or the adapter was made for another base"
    matrices = skew(layer.tensor(parameter, (blocks, size * (size - 1) // 2), hint), size)
    if config.coft:
        matrices = _constrained(matrices, config.eps)
    if config.use_cayley_neumann:
        return finite_rotation(name, cayley_series(matrices, config.num_cayley_neumann_terms))
    return finite_rotation(name, cayley(matrices))


def _block_size(features: int, config: OFTConfig) -> int:
    """The block size that peft arrives at: it changes the configured number to one that divides ``features``."""
    if config.oft_block_size:
        return _divisor(features, config.oft_block_size)
    return features // _divisor(features, config.r)


def _divisor(features: int, wanted: int) -> int:
    """The divisor of ``features`` nearest to ``wanted``, the smaller one of two equally near."""
    if wanted >= features:
        return features
    lower = next(n for n in range(wanted, 0, -1) if features % n == 0)
    higher = next(n for n in range(wanted, features + 1) if features % n == 0)
    return lower if wanted - lower <= higher - wanted else higher


def _constrained(matrices: Tensor, eps: float) -> Tensor:
    """COFT: matrices no longer than ``eps`` over the root of their number."""
    limit = eps / torch.sqrt(torch.tensor(len(matrices)))
    norms = torch.linalg.norm(matrices, dim=(1, 2), keepdim=True)
    return torch.where(norms <= limit, matrices, limit * (matrices / norms))


_BOFT_ROTATIONS, _BOFT_SCALE = "boft_R", "boft_s"
# The product of up to four factors weighs at most twice what they weigh, and in blocks of this size runs faster.
_MAX_MERGED_FACTORS, _MAX_MERGED_SIZE = 4, 64


def compile_boft(package: SavedAdapter, base: BaseSpec) -> Adapter:
    """Ops of a BOFT package (https://huggingface.co/papers/2311.06243).

    Semantics: ``y = s * (W (x R_m ... R_2 R_1)) + bias``. Each factor ``R_i`` rotates blocks of ``b`` features, which
    lie together in the first and ever farther apart in the others. The permutations that put them there are not
    saved, as they follow from ``b`` and ``i``.
    Shape: ``<module>.boft_R`` [m, in_features / b, b, b]; ``<module>.boft_s`` [out_features, 1].
    """
    config = package.config
    assert isinstance(config, BOFTConfig)

    def ops(layer: Layer) -> tuple[Op, ...]:
        return (*_butterfly(layer, config), _output_scale(layer, base))

    return sort_layers(package, base, [_BOFT_ROTATIONS, _BOFT_SCALE]).compile(ops)


def _butterfly(layer: Layer, config: BOFTConfig) -> list[Op]:
    factors, num, size = _butterfly_layout(layer, config)
    hint = "boft_n_butterfly_factor, boft_block_size and boft_block_num say so; or the base is another one"
    matrices = layer.tensor(_BOFT_ROTATIONS, (factors, num, size, size), hint).double().flatten(0, 1)
    changes = cayley(0.5 * (matrices - matrices.transpose(1, 2))).view(factors, num, size, size)
    ops = [RotateInput(changes[i].clone(), 2**i) for i in reversed(range(factors))]
    merged = size * 2 ** (factors - 1)
    if 1 < factors <= _MAX_MERGED_FACTORS and merged <= _MAX_MERGED_SIZE:
        ops = [_factors_as_one(ops, merged, layer.in_features)]
    return [op.map(lambda change: finite_rotation(tensor_name(layer.module, _BOFT_ROTATIONS), change)) for op in ops]


def _factors_as_one(ops: list[RotateInput], size: int, features: int) -> RotateInput:
    """All factors as one: together they mix features within blocks of ``size`` that lie side by side."""
    rows = torch.eye(size, dtype=torch.double).repeat(1, features // size)
    for op in ops:
        rows = rows + op.map(lambda change: change[None]).update(rows[None])[0]
    blocks = rows.view(size, -1, size).transpose(0, 1)
    return RotateInput((blocks - torch.eye(size)).contiguous())


def _butterfly_layout(layer: Layer, config: BOFTConfig) -> tuple[int, int, int]:
    """Number of factors, number of blocks in each, block size."""
    num = config.boft_block_num or layer.in_features // config.boft_block_size
    size = config.boft_block_size or layer.in_features // config.boft_block_num
    if num * size != layer.in_features:
        raise PackageError(
            f"module {quote(layer.module)} has {layer.in_features} inputs, no multiple of boft_block_size or "
            "boft_block_num; was the adapter made for another base?"
        )
    if require(layer.module, layer.found, _BOFT_ROTATIONS).shape[:1] == (1,):
        return 1, num, size  # what peft trains where its extension does not build
    factors = config.boft_n_butterfly_factor
    if factors > 1 and (size % 2 or num % 2 ** (factors - 1)):
        raise PackageError(
            f"module {quote(layer.module)}: {num} blocks of {size} make no butterfly of {factors} factors, for which "
            f"blocks must be of even size, and their number a multiple of {2 ** (factors - 1)}"
        )
    return factors, num, size


def _output_scale(layer: Layer, base: BaseSpec) -> Op:
    excess = layer.tensor(_BOFT_SCALE, (layer.out_features, 1)).flatten() - 1
    bias = own_bias(layer.module, base) if layer.module in base.biases else None
    return Magnitude(excess, None if bias is None else -excess * bias)
