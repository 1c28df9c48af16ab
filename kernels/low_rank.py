"""Low-rank updates of many adapters, each on its own rows of a batch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels import native

_ADD_LOW_RANK = native.Function("add_low_rank", "pipiipipi")


@dataclass(frozen=True, eq=False)
class LowRankRows:
    """Rows ``start .. stop`` of a batch get the update of one adapter.

    Shape: ``a`` [in_features, r], ``b`` [r, out_features], contiguous, float32, bfloat16 or float16; any r.
    """

    start: int
    stop: int
    a: Tensor
    b: Tensor


def add_low_rank(x: Tensor, y: Tensor, updates: Sequence[LowRankRows]) -> None:
    """Add every update to its rows of ``y``, in place.

    Semantics: ``y[start:stop] += (x[start:stop] @ a) @ b``, both products in float32, added up in order.
    Shape: ``x`` [T, in], ``y`` [T, out], rows any distance apart. A row is in one update at most.
    """
    table = LowRankTable([[LowRankFactors(rows.a, rows.b)] for rows in updates])
    table.add(x, y, row_segments((member, rows.start, rows.stop) for member, rows in enumerate(updates)))


def add_low_rank_torch(x: Tensor, y: Tensor, updates: Sequence[LowRankRows]) -> None:
    """The twin of ``add_low_rank``."""
    for rows in updates:
        part = slice(rows.start, rows.stop)
        y[part] += ((x[part].float() @ rows.a.float()) @ rows.b.float()).to(y.dtype)


@dataclass(frozen=True, eq=False)
class LowRankFactors:
    """One update of the columns of ``y`` from ``column`` on, as many as ``b`` has. Shape: as in ``LowRankRows``."""

    a: Tensor
    b: Tensor
    column: int = 0


def row_segments(segments: Iterable[tuple[int, int, int]]) -> Tensor:
    """Which rows are whose: (member, start, stop) of each segment. Shape: [S, 3] int64, on the CPU."""
    return torch.tensor(list(segments), dtype=torch.int64).view(-1, 3)


class LowRankTable:
    """The updates that each of some members (adapters) makes at one module, laid out once for many steps.

    A member may have several, on columns of their own: those of maps that are computed in one. Where rows are whose
    is told step by step, by segments that all modules share.
    """

    def __init__(self, members: Sequence[Sequence[LowRankFactors]]) -> None:
        self._members = members  # keeps the tensors alive
        most = max(map(len, members), default=0)
        none = [0] * 7
        rows = [[*map(_as_numbers, factors), *[none] * (most - len(factors))] for factors in members]
        self._table = torch.tensor(rows, dtype=torch.int64).view(len(members), most, 7)
        self._pointer, self._most = self._table.data_ptr(), most
        self._native = all(_is_plain(t) for factors in members for f in factors for t in (f.a, f.b))

    def add(self, x: Tensor, y: Tensor, segments: Tensor) -> None:
        """Add the members' updates to the rows of ``y`` that ``segments`` (``row_segments``) says are theirs.

        Segments do not overlap. Shape: ``x`` [T, in], ``y`` [T, out], rows any distance apart.
        """
        if self._native and native.is_native(x, y) and y.dtype == torch.float32:
            self.add_native(x, y, segments.data_ptr(), len(segments))
            return
        for member, start, stop in segments.tolist():
            for f in self._members[member]:
                columns = y[:, f.column : f.column + f.b.shape[1]]
                add_low_rank_torch(x, columns, [LowRankRows(start, stop, f.a, f.b)])

    def add_native(self, x: Tensor, y: Tensor, segments: int, count: int) -> None:
        """``add`` without its checks, for ``count`` segments at the address ``segments``."""
        _ADD_LOW_RANK(
            x.data_ptr(), x.stride(0), y.data_ptr(), y.stride(0), x.shape[1],
            self._pointer, self._most, segments, count,
        )  # fmt: skip


def _as_numbers(f: LowRankFactors) -> list[int]:
    a_type, b_type = native.STORED.get(f.a.dtype, 0), native.STORED.get(f.b.dtype, 0)
    return [f.a.data_ptr(), f.b.data_ptr(), f.a.shape[1], a_type, b_type, f.column, f.b.shape[1]]


def _is_plain(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.dtype in native.STORED and tensor.is_contiguous()
