"""Linear maps of one input that is changed for some rows, for each map in another way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from hotkernels import native
from hotkernels.linear import PackedWeight, linear
from hotkernels.low_rank import LowRankMaps
from hotkernels.program import Program, Rows, Variable
from hotkernels.row_ops import RowOpRows, apply_row_ops_torch

_LINEAR_OF_CHANGED = native.Function("linear_of_changed", "pppipiiipipi")
_LINEAR_ADAPTED = native.Function("linear_adapted", "pppipiiipipipipipi")


@dataclass(frozen=True, eq=False)
class LinearPart:
    """One of the maps, by the place where its input is changed. Shape: ``bias`` [out_features]."""

    place: int
    weight: PackedWeight
    bias: Tensor | None


class ChangedLinear:
    """Linear maps, their outputs side by side.

    ``joined`` and ``bias`` are all of them in one, where there is such a weight: it is used for rows that share an
    input, and changes no result.
    """

    def __init__(self, parts: Sequence[LinearPart], joined: PackedWeight | None, bias: Tensor | None) -> None:
        self._parts, self._joined, self._bias = parts, joined, bias
        ends = list(accumulate(part.weight.out_features for part in parts))
        self._columns = [end - part.weight.out_features for end, part in zip(ends, parts, strict=True)]
        self._out_features = ends[-1]
        self._is_native = all(part.weight.address is not None for part in parts)
        self._table = torch.tensor([
            [part.place, column, part.weight.out_features, part.weight.address or 0, native.pointer(part.bias) or 0]
            for part, column in zip(parts, self._columns, strict=True)
        ])  # fmt: skip
        self._addresses = None if joined is None else joined.address, native.pointer(bias), self._table.data_ptr()

    def __call__(self, x: Tensor, rows: RowOpRows) -> Tensor:
        """The products of an input that the ops of ``rows`` change.

        Semantics: the columns of a map are ``x' @ weight.dense().T + bias``, where ``x'`` is ``x`` after the ops that
        ``rows`` have at the map's place.
        Shape: ``x`` [T, in]; returns [T, all out_features] in its type.
        """
        if not self._is_native or not rows.is_plain or not native.is_native(x):
            return self.twin(x, rows)
        y = torch.empty(x.shape[0], self._out_features)
        _LINEAR_OF_CHANGED(
            *self._addresses, len(self._parts), x.data_ptr(), x.stride(0), x.shape[1], x.shape[0],
            y.data_ptr(), self._out_features, rows.address, rows.count,
        )  # fmt: skip
        return y

    def write(self, program: Program, x: Rows, y: Variable, maps: LowRankMaps, changes: tuple[Variable, ...]) -> None:
        """Add to a program the call, then ``add_low_rank`` and ``apply_row_ops`` of what ``maps`` compute.

        ``changes`` are the addresses and counts of ``LowRankRows``, and of ``RowOpRows`` for inputs and for outputs.
        """
        assert self._is_native, "a program is of native calls"
        program.add(
            _LINEAR_ADAPTED, *self._addresses, len(self._parts), x.at, x.stride, self._parts[0].weight.in_features,
            x.count, y, self._out_features, maps.address, maps.count, *changes,
        )  # fmt: skip

    def twin(self, x: Tensor, rows: RowOpRows) -> Tensor:
        """The twin of the call."""
        products = []
        for part in self._parts:
            given = x.clone()
            apply_row_ops_torch(given, given, LowRankMaps([(part.place, 0)]), rows)
            products.append(linear(given, part.weight, part.bias))
        return torch.cat(products, 1)
