"""BEFT: a bias for every targeted linear map, beside the base's own."""

from __future__ import annotations

from adapters.base import BaseSpec
from adapters.kinds.layers import sort_layers
from adapters.ops import Adapter, Bias
from adapters.package import AdapterPackage

_BIAS = "beft_bias"


def compile_beft(package: AdapterPackage, base: BaseSpec) -> Adapter:
    """Ops of a BEFT package (https://arxiv.org/abs/2509.15974).

    Semantics: ``y += beft_bias``.
    Shape: ``<module>.beft_bias`` [1, out_features].
    """
    layers = sort_layers(package, base, [_BIAS])
    return layers.compile(lambda layer: (Bias(layer.tensor(_BIAS, (1, layer.out_features)).flatten()),))
