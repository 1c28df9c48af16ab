"""HRA: the input of a linear map reflected, r times."""

from __future__ import annotations

import torch
from torch import Tensor

from adapters.base_spec import BaseSpec
from adapters.errors import PackageError
from adapters.kinds.layers import Layer, sort_layers
from adapters.kinds.rotation.cayley import finite_rotation
from adapters.kinds.rotation.config import HRAConfig
from adapters.kinds.saved_adapter import SavedAdapter, tensor_name
from adapters.ops import Adapter, Op
from adapters.ops.low_rank import LowRankInput
from adapters.quoting import quote

_COLUMNS = "hra_u"
_DEPENDENT = 1e-5  # of a column's length: what is left of one that depends on those before it


def compile_hra(package: SavedAdapter, base: BaseSpec) -> Adapter:
    """Ops of an HRA package (https://huggingface.co/papers/2405.17484).

    Semantics: ``y = W H_1 H_2 ... H_r x + bias``, where ``H_i = I - 2 u_i u_i^T`` for the columns ``u_i`` of ``hra_u``,
    of length one. With ``apply_GS`` the columns are made orthogonal first.
    Shape: ``<module>.hra_u`` [in_features, r].
    """
    config = package.config
    assert isinstance(config, HRAConfig)

    def ops(layer: Layer) -> tuple[Op, ...]:
        hint = "the number of columns is r in adapter_config.json; or the adapter was made for another base"
        columns, name = layer.tensor(_COLUMNS, (layer.in_features, config.r), hint), tensor_name(layer.module, _COLUMNS)
        if not bool((columns.norm(dim=0) > 0).all()):
            raise PackageError(f"tensor {quote(name)} has a column of zeros, which is no reflection")
        if config.apply_GS:
            a = _orthogonalized(name, columns)
            return (LowRankInput(a, -2 * a.T),)
        a, b = _compact(columns / columns.norm(dim=0))
        return (LowRankInput(finite_rotation(name, a), finite_rotation(name, b)),)

    return sort_layers(package, base, [_COLUMNS]).compile(ops)


def _compact(units: Tensor) -> tuple[Tensor, Tensor]:
    """All reflections of a row ``x`` as one low-rank change: ``x H_r ... H_2 H_1 = x + (x a) b``.

    ``H_1 ... H_r = I - U T U^T`` is the compact WY form. peft starts from pairs of equal columns, for which ``T`` has
    entries that cancel: with ``U = QR`` the factors are ``a = Q``, whose columns are orthonormal, and a ``b`` that is
    as small as the change, so that half-precision numbers hold it.
    Shape: ``units`` [in, r], columns of length one; ``a`` [in, k], ``b`` [k, in], with ``k = min(in, r)``.
    """
    units = units.double()
    gram = units.T @ units
    inverse = torch.triu(gram, 1) + torch.diag(gram.diagonal() / 2)  # of T
    a, r = torch.linalg.qr(units)
    core: Tensor = torch.linalg.solve_triangular(inverse.T, r.T, upper=False)  # T^T R^T
    return a, -(r @ core) @ a.T


def _orthogonalized(name: str, columns: Tensor) -> Tensor:
    """Gram-Schmidt in peft's order, one column after the other. PackageError when columns depend on each other."""
    done: list[Tensor] = []
    for column in columns.unbind(1):
        rest = column
        for other in done:
            rest = rest - (other @ rest) * other
        if float(rest.norm()) <= _DEPENDENT * float(column.norm()):
            raise PackageError(
                f"tensor {quote(name)}: column {len(done)} depends on those before it, so that apply_GS leaves nothing "
                "of it but rounding; train with independent columns, or without apply_GS"
            )
        done.append(rest / rest.norm())
    return torch.stack(done, dim=1)
