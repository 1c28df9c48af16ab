"""OFT: the input of a linear map rotated in blocks."""

from __future__ import annotations

import torch
from torch import Tensor

from adapters.base import BaseSpec
from adapters.configs.rotation import OFTConfig
from adapters.kinds.layers import Layer, sort_layers
from adapters.kinds.names import key
from adapters.kinds.rotation import cayley, cayley_series, finite, skew
from adapters.ops import Adapter, Op
from adapters.ops.rotate import RotateInput
from adapters.package import AdapterPackage

_VECTORS = "oft_R.weight"


def compile_oft(package: AdapterPackage, base: BaseSpec) -> Adapter:
    """Ops of an OFT package (https://huggingface.co/papers/2306.07280).

    Semantics: ``y = W (x R) + bias``, where ``R`` has one rotation for each block of ``b`` features on its diagonal.
    Shape: ``<module>.oft_R.weight`` [in_features / b, b (b - 1) / 2]; [1, b (b - 1) / 2] with ``block_share``.
    """
    config = package.config
    assert isinstance(config, OFTConfig)

    def ops(layer: Layer) -> tuple[Op, ...]:
        return (RotateInput(_rotations(layer, config)),)

    return sort_layers(package, base, [_VECTORS]).compile(ops)


def _rotations(layer: Layer, config: OFTConfig) -> Tensor:
    """The rotation of each block of input features, minus the identity. Raises PackageError."""
    size, name = _block_size(layer.in_features, config), key(layer.module, _VECTORS)
    blocks = 1 if config.block_share else layer.in_features // size
    hint = "r, oft_block_size and block_share in adapter_config.json say so; or the adapter was made for another base"
    matrices = skew(layer.tensor(_VECTORS, (blocks, size * (size - 1) // 2), hint), size)
    if config.coft:
        matrices = _constrained(matrices, config.eps)
    if config.use_cayley_neumann:
        return finite(name, cayley_series(matrices, config.num_cayley_neumann_terms))
    return finite(name, cayley(matrices))


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
