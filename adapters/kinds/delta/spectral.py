"""FourierFT, WaveFT and C3A: updates of few frequencies or wavelet coefficients, or of circulant blocks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from adapters.base_spec import BaseSpec
from adapters.errors import PackageError
from adapters.kinds.delta.config import C3AConfig, FourierFTConfig, WaveFTConfig
from adapters.kinds.delta.wavelets import filters
from adapters.kinds.dense import BYTES, check_memory, check_update, dense_bytes
from adapters.kinds.layers import Layer, Layers, sort_layers
from adapters.kinds.saved_adapter import SavedAdapter, tensor_name
from adapters.ops import Adapter, AddOp, Op
from adapters.ops.matrices import Circulant, Delta, Sparse, Spectrum
from adapters.quoting import quote

FOURIERFT_SPECTRUM = "fourierft_spectrum"
_RULE = r"(?:.*\.{}$)(?s:.*)"  # peft: re.match(rf".*\.{pattern}$", module), without brackets around the pattern


def compile_fourierft(package: SavedAdapter, base: BaseSpec) -> Adapter:
    """Ops of a FourierFT package.

    Semantics: ``W += scaling * Re(ifft2(S))``, where ``S`` holds the spectrum at the first ``n_frequency`` places of a
    permutation drawn from ``random_loc_seed``; ``Spectrum`` with the scale folded into its values.
    Shape: ``<module>.fourierft_spectrum`` [n_frequency].
    """
    config = package.config
    assert isinstance(config, FourierFTConfig)
    layers = sort_layers(package, base, [FOURIERFT_SPECTRUM])
    places = TrainedPlaces(config.random_loc_seed)

    def ops(layer: Layer) -> tuple[Op, ...]:
        count = layers.matcher.value(config.n_frequency_pattern, layer.module, config.n_frequency, _RULE)
        values = read_spectrum(layer, FOURIERFT_SPECTRUM, count) * config.scaling
        op = Spectrum.build(*places.draw(layer, count), values, layer.out_features)
        return (check_update(op, layer.module),)

    return layers.compile(ops)


class TrainedPlaces:
    """Which weights of a matrix are trained: the start of a random permutation of all, as peft draws it."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._drawn: dict[tuple[int, int], Tensor] = {}

    def draw(self, layer: Layer, count: int) -> tuple[Tensor, Tensor]:
        """Rows and columns of ``count`` weights of the layer. Shape: both [count]."""
        total = layer.out_features * layer.in_features
        if (total, count) not in self._drawn:
            permutation = torch.randperm(total, generator=torch.Generator().manual_seed(self._seed))
            self._drawn[total, count] = permutation[:count].clone()
        place = self._drawn[total, count]
        return place // layer.in_features, place % layer.in_features


def read_spectrum(layer: Layer, parameter: str, count: int) -> Tensor:
    """The layer's trained values, [count]. PackageError for another number, and for more than the map has weights."""
    if count > layer.out_features * layer.in_features:
        raise PackageError(
            f"n_frequency {count} for tensor {quote(tensor_name(layer.module, parameter))} exceeds the "
            f"{layer.out_features * layer.in_features} weights of the map"
        )
    return layer.tensor(parameter, (count,), "the length differs from what n_frequency says in adapter_config.json")


_WAVEFT_SPECTRUM = "waveft_spectrum"
_Filters = tuple[list[float], list[float]]


def compile_waveft(package: SavedAdapter, base: BaseSpec) -> Adapter:
    """Ops of a WaveFT package.

    Semantics: ``W += scaling * D``. ``D`` is zero but for the spectrum at the first ``n_frequency`` places of a
    permutation drawn from ``random_loc_seed``; with ``use_idwt`` these are coefficients of one level of the wavelet.
    A coefficient reaches few weights: ``Sparse``, or ``Delta`` where that weighs less.
    Shape: ``<module>.waveft_spectrum`` [n_frequency].
    """
    config = package.config
    assert isinstance(config, WaveFTConfig)
    layers = sort_layers(package, base, [_WAVEFT_SPECTRUM])
    counts = _coefficient_counts(layers, config)
    wavelet = filters(config.wavelet_family) if config.use_idwt else ([1.0], [1.0])
    reach = len(wavelet[0]) ** 2  # how many weights a coefficient changes
    check_memory(
        {it.module: _update_bytes(it, counts[it.module] * reach) for it in layers.layers}, "WaveFT", package.limits
    )
    places = TrainedPlaces(config.random_loc_seed)

    def ops(layer: Layer) -> tuple[Op, ...]:
        count = counts[layer.module]
        values = read_spectrum(layer, _WAVEFT_SPECTRUM, count) * config.scaling
        rows, columns = places.draw(layer, count)
        op: AddOp
        if config.use_idwt:
            op = _smaller_form(reconstruct(rows, columns, values, layer, wavelet))
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


def _coefficient_counts(layers: Layers, config: WaveFTConfig) -> dict[str, int]:
    """How many coefficients each module has."""
    if not config.proportional_parameters:
        pick = layers.matcher.value
        return {it.module: pick(config.n_frequency_pattern, it.module, config.n_frequency) for it in layers.layers}
    total = sum(it.out_features * it.in_features for it in layers.layers)
    budget = config.n_frequency * len(layers.layers)
    return {it.module: max(1, round(it.out_features * it.in_features / total * budget)) for it in layers.layers}


def _update_bytes(layer: Layer, entries: int) -> int:
    return min(2 * BYTES * entries + BYTES * layer.out_features, dense_bytes(layer.out_features, layer.in_features))


def _smaller_form(matrix: Tensor) -> AddOp:
    rows, columns = matrix.nonzero(as_tuple=True)
    if 2 * len(rows) + len(matrix) < matrix.numel():
        return Sparse.build(rows, columns, matrix[rows, columns], len(matrix))
    return Delta(matrix.T.contiguous())


_C3A_KERNEL = "c3a_kernel"


def compile_c3a(package: SavedAdapter, base: BaseSpec) -> Adapter:
    """Ops of a C3A package.

    Semantics: ``Circulant`` of the kernel divided by ``in_features``.
    Shape: ``<module>.c3a_kernel`` [out_features / block_size, in_features / block_size, block_size].
    """
    config = package.config
    assert isinstance(config, C3AConfig)
    layers = sort_layers(package, base, [_C3A_KERNEL])

    def ops(layer: Layer) -> tuple[Op, ...]:
        size = layers.matcher.value(config.block_size_pattern, layer.module, config.block_size, _RULE)
        if layer.out_features % size or layer.in_features % size:
            raise PackageError(
                f"block_size {size} does not divide module {quote(layer.module)}, "
                f"[{layer.out_features}, {layer.in_features}]; was the adapter made for another base?"
            )
        shape = (layer.out_features // size, layer.in_features // size, size)
        kernel = layer.tensor(_C3A_KERNEL, shape, "the shape differs from what block_size says in adapter_config.json")
        return (check_update(Circulant.build(kernel / layer.in_features), layer.module),)

    return layers.compile(ops)
