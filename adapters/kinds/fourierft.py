"""FourierFT: an update given by some of its frequencies (https://huggingface.co/papers/2405.03003)."""

from __future__ import annotations

import torch
from torch import Tensor

from adapters.base import BaseSpec
from adapters.configs.delta import FourierFTConfig
from adapters.errors import PackageError
from adapters.kinds.dense import check_update
from adapters.kinds.layers import Layer, sort_layers
from adapters.kinds.names import key
from adapters.names import shown
from adapters.ops import Adapter, Op
from adapters.ops.spectrum import Spectrum
from adapters.package import AdapterPackage

SPECTRUM = "fourierft_spectrum"
_RULE = r"(?:.*\.{}$)(?s:.*)"  # peft: re.match(rf".*\.{pattern}$", module), without brackets around the pattern


def compile_fourierft(package: AdapterPackage, base: BaseSpec) -> Adapter:
    """Ops of a FourierFT package.

    Semantics: ``W += scaling * Re(ifft2(S))``, where ``S`` holds the spectrum at the first ``n_frequency`` places of a
    permutation drawn from ``random_loc_seed``; ``Spectrum`` with the scale folded into its values.
    Shape: ``<module>.fourierft_spectrum`` [n_frequency].
    """
    config = package.config
    assert isinstance(config, FourierFTConfig)
    layers = sort_layers(package, base, [SPECTRUM])
    places = Places(config.random_loc_seed)

    def ops(layer: Layer) -> tuple[Op, ...]:
        count = layers.matcher.value(config.n_frequency_pattern, layer.module, config.n_frequency, _RULE)
        values = spectrum(layer, SPECTRUM, count) * config.scaling
        op = Spectrum.build(*places.draw(layer, count), values, layer.out_features)
        return (check_update(op, layer.module),)

    return layers.compile(ops)


class Places:
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


def spectrum(layer: Layer, parameter: str, count: int) -> Tensor:
    """The layer's trained values, [count]. PackageError for another number, and for more than the map has weights."""
    if count > layer.out_features * layer.in_features:
        raise PackageError(
            f"n_frequency {count} for tensor {shown(key(layer.module, parameter))} exceeds the "
            f"{layer.out_features * layer.in_features} weights of the map"
        )
    return layer.tensor(parameter, (count,), "the length differs from what n_frequency says in adapter_config.json")
