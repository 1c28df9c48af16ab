"""SHiRA: single weights trained (https://huggingface.co/papers/2406.13175)."""

from __future__ import annotations

import torch
from torch import Tensor

from adapters.base import BaseSpec
from adapters.configs.delta import ShiraConfig
from adapters.errors import PackageError
from adapters.kinds.check import expect_shape
from adapters.kinds.layers import Layer, sort_layers
from adapters.kinds.names import key, take
from adapters.names import shown
from adapters.ops import Adapter, Op
from adapters.ops.sparse import Sparse
from adapters.package import AdapterPackage

_WEIGHT, _INDICES = "shira_weight", "shira_indices"


def compile_shira(package: AdapterPackage, base: BaseSpec) -> Adapter:
    """Ops of a SHiRA package.

    Semantics: ``W[row, column] += weight``; ``Sparse``.
    Shape: ``<module>.shira_weight`` [n], ``<module>.shira_indices`` [2, n] (rows, columns), where ``n = r *
    (out_features + in_features)``; indices are int32, or whole float32 when saved on Windows.
    """
    config = package.config
    assert isinstance(config, ShiraConfig)

    def ops(layer: Layer) -> tuple[Op, ...]:
        count = config.r * (layer.out_features + layer.in_features)
        values = layer.tensor(_WEIGHT, (count,), "the length differs from what r says in adapter_config.json")
        rows, columns = _indices(layer, count)
        return (Sparse.build(rows, columns, values, layer.out_features),)

    return sort_layers(package, base, [_WEIGHT, _INDICES]).compile(ops)


def _indices(layer: Layer, count: int) -> Tensor:
    """Rows and columns, [2, count]. PackageError when they are no whole numbers, or outside of the map."""
    given, name = take(layer.module, layer.found, _INDICES), key(layer.module, _INDICES)
    expect_shape(name, given, (2, count), "there must be a row and a column for every weight")
    indices = given.long()
    if given.is_floating_point() and not torch.equal(indices.to(given.dtype), given):
        raise PackageError(f"tensor {shown(name)} holds indices that are no whole numbers")
    sizes = torch.tensor([[layer.out_features], [layer.in_features]])
    if bool(((indices < 0) | (indices >= sizes)).any()):
        raise PackageError(
            f"tensor {shown(name)} points outside of its module, [{layer.out_features}, {layer.in_features}]; "
            "was the adapter made for another base?"
        )
    return indices
