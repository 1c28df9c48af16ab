"""OFT: the input of a linear map, or the output of the embedding, rotated in blocks."""

from __future__ import annotations

import torch
from torch import Tensor

from adapters.base import BaseSpec
from adapters.configs.rotation import OFTConfig
from adapters.errors import PackageError
from adapters.kinds.layers import Layer, sort_layers
from adapters.kinds.names import key
from adapters.kinds.rotation import cayley, cayley_series, finite, skew
from adapters.names import shown
from adapters.ops import Adapter, Op
from adapters.ops.rotate import RotateInput, RotateOutput
from adapters.package import AdapterPackage

_VECTORS, _EMBEDDED = "oft_R.weight", "oft_embedding_R.weight"


def compile_oft(package: AdapterPackage, base: BaseSpec) -> Adapter:
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
            raise PackageError(f"module {shown(layer.module)} has both {_VECTORS} and {_EMBEDDED}; peft saves one")
        if layer.module == base.embedding:
            return (RotateOutput(_rotations(layer, _EMBEDDED, layer.out_features, config)),)
        return (RotateInput(_rotations(layer, _VECTORS, layer.in_features, config)),)

    return sort_layers(package, base, [_VECTORS], _EMBEDDED).compile(ops)


def _rotations(layer: Layer, parameter: str, features: int, config: OFTConfig) -> Tensor:
    """The rotation of each block of ``features``, minus the identity. Raises PackageError."""
    size, name = _block_size(features, config), key(layer.module, parameter)
    blocks = 1 if config.block_share else features // size
    hint = "r, oft_block_size and block_share in adapter_config.json say so; or the adapter was made for another base"
    matrices = skew(layer.tensor(parameter, (blocks, size * (size - 1) // 2), hint), size)
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
