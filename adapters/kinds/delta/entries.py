"""SHiRA and Super-Tuning: single entries of a weight trained, in the latter with a low-rank update beside."""

from __future__ import annotations

import torch
from torch import Tensor

from adapters.base_spec import BaseSpec
from adapters.errors import PackageError
from adapters.kinds.delta.config import ShiraConfig, SupertuningConfig
from adapters.kinds.dense import check_update
from adapters.kinds.layers import Layer, sort_layers
from adapters.kinds.saved_adapter import SavedAdapter, expect_shape, require, tensor_name
from adapters.ops import Adapter, AddOp, LowRank, Op
from adapters.ops.matrices import Delta, Sparse
from adapters.quoting import quote

_SHIRA_WEIGHT, _SHIRA_INDICES = "shira_weight", "shira_indices"


def compile_shira(package: SavedAdapter, base: BaseSpec) -> Adapter:
    """Ops of a SHiRA package.

    Semantics: ``W[row, column] += weight``; ``Sparse``.
    Shape: ``<module>.shira_weight`` [n], ``<module>.shira_indices`` [2, n] (rows, columns), where ``n = r *
    (out_features + in_features)``; indices are int32, or whole float32 when saved on Windows.
    """
    config = package.config
    assert isinstance(config, ShiraConfig)

    def ops(layer: Layer) -> tuple[Op, ...]:
        count = config.r * (layer.out_features + layer.in_features)
        values = layer.tensor(_SHIRA_WEIGHT, (count,), "the length differs from what r says in adapter_config.json")
        rows, columns = _shira_indices(layer, count)
        return (Sparse.build(rows, columns, values, layer.out_features),)

    return sort_layers(package, base, [_SHIRA_WEIGHT, _SHIRA_INDICES]).compile(ops)


def _shira_indices(layer: Layer, count: int) -> Tensor:
    """Rows and columns, [2, count]. PackageError when they are no whole numbers, or outside of the map."""
    given = require(layer.module, layer.found, _SHIRA_INDICES)
    name = tensor_name(layer.module, _SHIRA_INDICES)
    expect_shape(name, given, (2, count), "there must be a row and a column for every weight")
    indices = given.long()
    if given.is_floating_point() and not torch.equal(indices.to(given.dtype), given):
        raise PackageError(f"tensor {quote(name)} holds indices that are no whole numbers")
    _check_inside(name, indices, torch.tensor([[layer.out_features], [layer.in_features]]), layer)
    return indices


def _check_inside(name: str, indices: Tensor, sizes: Tensor | int, layer: Layer) -> None:
    """PackageError for an index below 0, or not below its one of ``sizes``."""
    if bool(((indices < 0) | (indices >= sizes)).any()):
        raise PackageError(
            f"tensor {quote(name)} points outside of its module, [{layer.out_features}, {layer.in_features}]; "
            "was the adapter made for another base?"
        )


_SUPERTUNING_VALUES, _SUPERTUNING_INDICES = "supertuning_values", "supertuning_indices"
_SUPERTUNING_A, _SUPERTUNING_B = "supertuning_lora_A.weight", "supertuning_lora_B.weight"


def compile_supertuning(package: SavedAdapter, base: BaseSpec) -> Adapter:
    """Ops of a Super-Tuning package (https://arxiv.org/abs/2607.09287).

    Semantics: ``W[i // in_features, i % in_features] += value`` for each index ``i``; with ``r``, ``W += lora_alpha / r
    * (lora_B @ lora_A)`` too.
    Shape: ``<module>.supertuning_values``, ``<module>.supertuning_indices`` (int32) [n], where ``n`` is the share
    ``1 - sparsity`` of the weight's entries; ``<module>.supertuning_lora_A.weight`` [r, in_features],
    ``<module>.supertuning_lora_B.weight`` [out_features, r].
    """
    config = package.config
    assert isinstance(config, SupertuningConfig)
    parameters = (
        [_SUPERTUNING_VALUES, _SUPERTUNING_INDICES]
        if config.r is None
        else [_SUPERTUNING_VALUES, _SUPERTUNING_INDICES, _SUPERTUNING_A, _SUPERTUNING_B]
    )

    def ops(layer: Layer) -> tuple[Op, ...]:
        sparse = _sparse(layer, int(layer.out_features * layer.in_features * (1 - config.sparsity)))
        return (sparse,) if config.r is None else (sparse, _low_rank(layer, config.r, config.scale))

    return sort_layers(package, base, parameters).compile(ops)


def _sparse(layer: Layer, count: int) -> AddOp:
    """The single entries, as the whole matrix where that weighs less."""
    hint = "sparsity in adapter_config.json says so; or the adapter was made for another base"
    values, indices = layer.tensor(_SUPERTUNING_VALUES, (count,), hint), _supertuning_indices(layer, count)
    rows, columns = indices // layer.in_features, indices % layer.in_features
    if 2 * count <= layer.out_features * layer.in_features:
        return Sparse.build(rows, columns, values, layer.out_features)
    update = torch.zeros(layer.in_features, layer.out_features)
    return Delta(update.index_put_((columns, rows), values, accumulate=True))


def _supertuning_indices(layer: Layer, count: int) -> Tensor:
    given = require(layer.module, layer.found, _SUPERTUNING_INDICES)
    name = tensor_name(layer.module, _SUPERTUNING_INDICES)
    expect_shape(name, given, (count,), "there must be an index for every value")
    if given.is_floating_point():
        raise PackageError(f"tensor {quote(name)} holds numbers with a fraction; indices are expected")
    _check_inside(name, given, layer.out_features * layer.in_features, layer)
    return given.long()


def _low_rank(layer: Layer, r: int, scale: float) -> AddOp:
    a, b = (
        layer.tensor(_SUPERTUNING_A, (r, layer.in_features)),
        layer.tensor(_SUPERTUNING_B, (layer.out_features, r)) * scale,
    )
    return check_update(LowRank(a.T.contiguous(), b.T.contiguous()), layer.module)
