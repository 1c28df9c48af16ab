"""Houlsby's and Pfeiffer's bottleneck adapters, in hotswap's own format."""

from __future__ import annotations

import torch

from adapters.base_spec import BaseSpec
from adapters.errors import PackageError
from adapters.kinds.activations.config import BottleneckConfig
from adapters.kinds.layers import Layer, sort_layers
from adapters.kinds.saved_adapter import SavedAdapter, tensor_name
from adapters.ops import Adapter
from adapters.ops.activations import Bottleneck
from adapters.quoting import quote

PARAMETERS = (
    "bottleneck_down.weight",
    "bottleneck_down.bias",
    "bottleneck_up.weight",
    "bottleneck_up.bias",
)


def compile_bottleneck(package: SavedAdapter, base: BaseSpec) -> Adapter:
    """Ops of a bottleneck package.

    Shape: ``<module>.bottleneck_down.weight`` [m, out_features], ``.bias`` [m]; ``<module>.bottleneck_up.weight``
    [out_features, m], ``.bias`` [out_features], where out_features is what the module puts out.
    """
    config = package.config
    assert isinstance(config, BottleneckConfig)
    return sort_layers(package, base, PARAMETERS).compile(lambda layer: (_bottleneck(layer, config),))


def _bottleneck(layer: Layer, config: BottleneckConfig) -> Bottleneck:
    width, size = layer.out_features, config.bottleneck_size
    shapes = ((size, width), (size,), (width, size), (width,))
    hint = "the base has another width, or bottleneck_size in adapter_config.json is not this package's"
    down, down_bias, up, up_bias = (
        layer.tensor(parameter, shape, hint) for parameter, shape in zip(PARAMETERS, shapes, strict=True)
    )
    up, up_bias = up * config.scale, up_bias * config.scale
    if not bool(torch.isfinite(up).all() and torch.isfinite(up_bias).all()):
        raise PackageError(f"tensor {quote(tensor_name(layer.module, PARAMETERS[2]))} times its scale is not finite")
    return Bottleneck(down.T.contiguous(), down_bias, up.T.contiguous(), up_bias, config.activation)
