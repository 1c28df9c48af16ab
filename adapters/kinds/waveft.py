"""WaveFT: an update given by some of its wavelet coefficients (https://huggingface.co/papers/2505.12532)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from adapters.base import BaseSpec
from adapters.configs.delta import WaveFTConfig
from adapters.kinds.dense import BYTES, check_memory, check_update, dense_bytes
from adapters.kinds.fourierft import Places, spectrum
from adapters.kinds.layers import Layer, Layers, sort_layers
from adapters.kinds.wavelets import filters
from adapters.ops import Adapter, AddOp, Op
from adapters.ops.delta import Delta
from adapters.ops.sparse import Sparse
from adapters.package import AdapterPackage

_SPECTRUM = "waveft_spectrum"
_Filters = tuple[list[float], list[float]]


def compile_waveft(package: AdapterPackage, base: BaseSpec) -> Adapter:
    """Ops of a WaveFT package.

    Semantics: ``W += scaling * D``. ``D`` is zero but for the spectrum at the first ``n_frequency`` places of a
    permutation drawn from ``random_loc_seed``; with ``use_idwt`` these are coefficients of one level of the wavelet.
    A coefficient reaches few weights: ``Sparse``, or ``Delta`` where that weighs less.
    Shape: ``<module>.waveft_spectrum`` [n_frequency].
    """
    config = package.config
    assert isinstance(config, WaveFTConfig)
    layers = sort_layers(package, base, [_SPECTRUM])
    counts = _counts(layers, config)
    wavelet = filters(config.wavelet_family) if config.use_idwt else ([1.0], [1.0])
    reach = len(wavelet[0]) ** 2  # how many weights a coefficient changes
    check_memory({it.module: _bytes(it, counts[it.module] * reach) for it in layers.layers}, "WaveFT", package.limits)
    places = Places(config.random_loc_seed)

    def ops(layer: Layer) -> tuple[Op, ...]:
        count = counts[layer.module]
        values = spectrum(layer, _SPECTRUM, count) * config.scaling
        rows, columns = places.draw(layer, count)
        op: AddOp
        if config.use_idwt:
            op = _smaller(reconstruct(rows, columns, values, layer, wavelet))
        else:
            op = Sparse.build(rows, columns, values, layer.out_features)
        return (check_update(op, layer.module),)

    return layers.compile(ops)


def reconstruct(rows: Tensor, columns: Tensor, values: Tensor, layer: Layer, wavelet: _Filters) -> Tensor:
    """The matrix [out_features, in_features] whose coefficients of one level are ``values`` at ``rows``, ``columns``.

    As peft does it: the coefficients' matrix is padded at every edge by what the filters reach beyond it, its quarters
    are the approximation and the horizontal, vertical and diagonal details, and the middle of the result counts. peft
    takes horizontal details for high-pass along rows' index, vertical ones along columns'.
    """
    low, high = (torch.tensor(f) for f in wavelet)
    margin = len(low) - 2
    height, width = (size + margin + (size + margin) % 2 for size in (layer.out_features, layer.in_features))
    padded = values.new_zeros(height, width)
    padded[rows + (height - layer.out_features) // 2, columns + (width - layer.in_features) // 2] = values
    top, bottom = padded.chunk(2)
    quarters = torch.stack([*top.chunk(2, dim=1), *bottom.chunk(2, dim=1)])[None]
    kernels = torch.stack([torch.outer(a, b) for a, b in ((low, low), (high, low), (low, high), (high, high))])[:, None]
    cut = (2 * len(low) - 3) // 2
    found = F.conv_transpose2d(quarters, kernels, stride=2)[0, 0]
    found = found[cut : len(found) - cut, cut : found.shape[1] - cut]
    row, column = (len(found) - layer.out_features) // 2, (found.shape[1] - layer.in_features) // 2
    return found[row : row + layer.out_features, column : column + layer.in_features]


def _counts(layers: Layers, config: WaveFTConfig) -> dict[str, int]:
    """How many coefficients each module has."""
    if not config.proportional_parameters:
        pick = layers.matcher.value
        return {it.module: pick(config.n_frequency_pattern, it.module, config.n_frequency) for it in layers.layers}
    total = sum(it.out_features * it.in_features for it in layers.layers)
    budget = config.n_frequency * len(layers.layers)
    return {it.module: max(1, round(it.out_features * it.in_features / total * budget)) for it in layers.layers}


def _bytes(layer: Layer, entries: int) -> int:
    return min(2 * BYTES * entries + BYTES * layer.out_features, dense_bytes(layer.out_features, layer.in_features))


def _smaller(matrix: Tensor) -> AddOp:
    rows, columns = matrix.nonzero(as_tuple=True)
    if 2 * len(rows) + len(matrix) < matrix.numel():
        return Sparse.build(rows, columns, matrix[rows, columns], len(matrix))
    return Delta(matrix.T.contiguous())
