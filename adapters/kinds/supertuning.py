"""Super-Tuning: the largest (or smallest) entries of a linear map's weight trained, and a low-rank update beside."""

from __future__ import annotations

import torch
from torch import Tensor

from adapters.base import BaseSpec
from adapters.configs.supertuning import SupertuningConfig
from adapters.errors import PackageError
from adapters.kinds.check import expect_shape
from adapters.kinds.dense import check_update
from adapters.kinds.layers import Layer, sort_layers
from adapters.kinds.names import key, take
from adapters.names import shown
from adapters.ops import Adapter, AddOp, LowRank, Op
from adapters.ops.delta import Delta
from adapters.ops.sparse import Sparse
from adapters.package import AdapterPackage

_VALUES, _INDICES = "supertuning_values", "supertuning_indices"
_A, _B = "supertuning_lora_A.weight", "supertuning_lora_B.weight"


def compile_supertuning(package: AdapterPackage, base: BaseSpec) -> Adapter:
    """Ops of a Super-Tuning package (https://arxiv.org/abs/2607.09287).

    Semantics: ``W[i // in_features, i % in_features] += value`` for each index ``i``; with ``r``, ``W += lora_alpha / r
    * (lora_B @ lora_A)`` too.
    Shape: ``<module>.supertuning_values``, ``<module>.supertuning_indices`` (int32) [n], where ``n`` is the share
    ``1 - sparsity`` of the weight's entries; ``<module>.supertuning_lora_A.weight`` [r, in_features],
    ``<module>.supertuning_lora_B.weight`` [out_features, r].
    """
    config = package.config
    assert isinstance(config, SupertuningConfig)
    parameters = [_VALUES, _INDICES] if config.r is None else [_VALUES, _INDICES, _A, _B]

    def ops(layer: Layer) -> tuple[Op, ...]:
        sparse = _sparse(layer, int(layer.out_features * layer.in_features * (1 - config.sparsity)))
        return (sparse,) if config.r is None else (sparse, _low_rank(layer, config.r, config.scale))

    return sort_layers(package, base, parameters).compile(ops)


def _sparse(layer: Layer, count: int) -> AddOp:
    """The single entries, as the whole matrix where that weighs less."""
    hint = "sparsity in adapter_config.json says so; or the adapter was made for another base"
    values, indices = layer.tensor(_VALUES, (count,), hint), _indices(layer, count)
    rows, columns = indices // layer.in_features, indices % layer.in_features
    if 2 * count <= layer.out_features * layer.in_features:
        return Sparse.build(rows, columns, values, layer.out_features)
    update = torch.zeros(layer.in_features, layer.out_features)
    return Delta(update.index_put_((columns, rows), values, accumulate=True))


def _indices(layer: Layer, count: int) -> Tensor:
    given, name = take(layer.module, layer.found, _INDICES), key(layer.module, _INDICES)
    expect_shape(name, given, (count,), "there must be an index for every value")
    if given.is_floating_point():
        raise PackageError(f"tensor {shown(name)} holds numbers with a fraction; indices are expected")
    if bool(((given < 0) | (given >= layer.out_features * layer.in_features)).any()):
        raise PackageError(
            f"tensor {shown(name)} points outside of its module, [{layer.out_features}, {layer.in_features}]; "
            "was the adapter made for another base?"
        )
    return given.long()


def _low_rank(layer: Layer, r: int, scale: float) -> AddOp:
    a, b = layer.tensor(_A, (r, layer.in_features)), layer.tensor(_B, (layer.out_features, r)) * scale
    return check_update(LowRank(a.T.contiguous(), b.T.contiguous()), layer.module)
