"""C3A: an update made of circulant blocks (https://huggingface.co/papers/2407.19342)."""

from __future__ import annotations

from adapters.base import BaseSpec
from adapters.configs.delta import C3AConfig
from adapters.errors import PackageError
from adapters.kinds.dense import check_update
from adapters.kinds.layers import Layer, sort_layers
from adapters.names import shown
from adapters.ops import Adapter, Op
from adapters.ops.circulant import Circulant
from adapters.package import AdapterPackage

_KERNEL = "c3a_kernel"
_RULE = r"(?:.*\.{}$)(?s:.*)"  # peft: re.match(rf".*\.{pattern}$", module), without brackets around the pattern


def compile_c3a(package: AdapterPackage, base: BaseSpec) -> Adapter:
    """Ops of a C3A package.

    Semantics: ``Circulant`` of the kernel divided by ``in_features``.
    Shape: ``<module>.c3a_kernel`` [out_features / block_size, in_features / block_size, block_size].
    """
    config = package.config
    assert isinstance(config, C3AConfig)
    layers = sort_layers(package, base, [_KERNEL])

    def ops(layer: Layer) -> tuple[Op, ...]:
        size = layers.matcher.value(config.block_size_pattern, layer.module, config.block_size, _RULE)
        if layer.out_features % size or layer.in_features % size:
            raise PackageError(
                f"block_size {size} does not divide module {shown(layer.module)}, "
                f"[{layer.out_features}, {layer.in_features}]; was the adapter made for another base?"
            )
        shape = (layer.out_features // size, layer.in_features // size, size)
        kernel = layer.tensor(_KERNEL, shape, "the shape differs from what block_size says in adapter_config.json")
        return (check_update(Circulant.build(kernel / layer.in_features), layer.module),)

    return layers.compile(ops)
