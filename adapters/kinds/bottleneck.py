"""Houlsby's and Pfeiffer's bottleneck adapters, in hotswap's own format."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from adapters.base import BaseSpec
from adapters.configs.whole import BottleneckConfig
from adapters.errors import PackageError
from adapters.kinds.check import expect_shape
from adapters.kinds.names import by_module, key, take
from adapters.kinds.targets import check_targets, linear_shape
from adapters.names import shown
from adapters.ops import Adapter
from adapters.ops.bottleneck import Bottleneck
from adapters.package import AdapterPackage
from adapters.patterns import PatternMatcher

PARAMETERS = (
    "bottleneck_down.weight",
    "bottleneck_down.bias",
    "bottleneck_up.weight",
    "bottleneck_up.bias",
)


def compile_bottleneck(package: AdapterPackage, base: BaseSpec) -> Adapter:
    """Ops of a bottleneck package.

    Shape: ``<module>.bottleneck_down.weight`` [m, out_features], ``.bias`` [m]; ``<module>.bottleneck_up.weight``
    [out_features, m], ``.bias`` [out_features], where out_features is what the module puts out.
    """
    config = package.config
    assert isinstance(config, BottleneckConfig)
    found = by_module(package.tensors, PARAMETERS, config.KIND)
    ops = {module: (_op(module, tensors, base, config),) for module, tensors in found.items()}
    check_targets(set(found), base, config, PatternMatcher(config), PARAMETERS[0])
    return Adapter(config.KIND, ops)


def _op(module: str, found: Mapping[str, Tensor], base: BaseSpec, config: BottleneckConfig) -> Bottleneck:
    width, size = linear_shape(module, PARAMETERS[0], base)[0], config.bottleneck_size
    shapes = ((size, width), (size,), (width, size), (width,))
    for parameter, shape in zip(PARAMETERS, shapes, strict=True):
        hint = "the base has another width, or bottleneck_size in adapter_config.json is not this package's"
        expect_shape(key(module, parameter), take(module, found, parameter), shape, hint)
    down, down_bias, up, up_bias = (found[parameter].float() for parameter in PARAMETERS)
    up, up_bias = up * config.scale, up_bias * config.scale
    if not bool(torch.isfinite(up).all() and torch.isfinite(up_bias).all()):
        raise PackageError(f"tensor {shown(key(module, PARAMETERS[2]))} times its scale is not finite")
    return Bottleneck(down.T.contiguous(), down_bias, up.T.contiguous(), up_bias, config.activation)
