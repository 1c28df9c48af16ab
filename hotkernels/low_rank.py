"""Low-rank updates of many adapters, each on its own rows of a batch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from hotkernels import native

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

    @cached_property
    def numbers(self) -> Tensor:
        """As the library reads them. Shape: [7] int64."""
        a_type, b_type = native.STORED.get(self.a.dtype, 0), native.STORED.get(self.b.dtype, 0)
        pointers = self.a.data_ptr(), self.b.data_ptr()
        return torch.tensor([*pointers, self.a.shape[1], a_type, b_type, self.column, self.b.shape[1]])

    @property
    def is_plain(self) -> bool:
        """Whether the library can read them."""
        return all(t.device.type == "cpu" and t.dtype in native.STORED and t.is_contiguous() for t in (self.a, self.b))


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
        none = torch.zeros(7, dtype=torch.int64)
        rows = [row for factors in members for row in (*(f.numbers for f in factors), *[none] * (most - len(factors)))]
        self._table = torch.stack(rows) if rows else none
        self._pointer, self._most = self._table.data_ptr(), most
        self._native = all(f.is_plain for factors in members for f in factors)

    def add(self, x: Tensor, y: Tensor, segments: Tensor) -> None:
        """Add the members' updates to the rows of ``y`` that ``segments`` (``row_segments``) says are theirs.

        Segments do not overlap. Shape: ``x`` [T, in], ``y`` [T, out], rows any distance apart.
        """
        if not self._native or x.device.type != "cpu" or native.library() is None:
            self._add_torch(x, y, segments)
        elif native.is_native(x, y) and y.dtype == torch.float32:
            self.add_native(x, y, segments.data_ptr(), len(segments))
        else:
            given, changed = x.float().contiguous(), y.float().contiguous()
            self.add_native(given, changed, segments.data_ptr(), len(segments))
            y.copy_(changed)

    def _add_torch(self, x: Tensor, y: Tensor, segments: Tensor) -> None:
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
