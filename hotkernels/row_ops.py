"""What adapters of many kinds do to their rows of a batch, each its own ops one after another, all in one call."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from hotkernels import native
from hotkernels.low_rank import LowRankMaps

_APPLY_ROW_OPS = native.Function("apply_row_ops", "piipiipipi")
_TENSORS, _SIZES = 4, 5  # of an op, in the library's layout


@dataclass(frozen=True, eq=False)
class RowOp(ABC):
    """One change of rows ``y`` [n, out], which may depend on rows ``x`` [n, in].

    Tensors are contiguous, float32, bfloat16 or float16; what is computed is float32, the same for a row whatever rows
    are beside it.
    """

    @abstractmethod
    def twin(self, x: Tensor, y: Tensor) -> None:
        """The twin: change ``y`` in place."""

    @abstractmethod
    def layout(self) -> tuple[int, Sequence[Tensor | None], Sequence[int]]:
        """The number of the op, its tensors and its sizes, as the library has them."""

    @property
    def is_plain(self) -> bool:
        """Whether the library can read it."""
        tensors = [tensor for tensor in self.layout()[1] if tensor is not None]
        return all(t.is_cpu and t.dtype in native.STORED and t.is_contiguous() for t in tensors)

    def numbers(self) -> list[int]:
        """As the library reads it."""
        code, tensors, sizes = self.layout()
        found = [(0, 0) if t is None else (t.data_ptr(), native.STORED.get(t.dtype, 0)) for t in tensors]
        found += [(0, 0)] * (_TENSORS - len(found))
        return [code, *(number for pair in found for number in pair), *sizes, *[0] * (_SIZES - len(sizes))]


@dataclass(frozen=True, eq=False)
class Affine(RowOp):
    """A gain and a constant for every feature.

    Semantics: ``y += excess * y + shift``, without the one that is None.
    Shape: ``excess``, ``shift`` [out].
    """

    excess: Tensor | None
    shift: Tensor | None

    def twin(self, x: Tensor, y: Tensor) -> None:
        """The twin."""
        known = self.excess if self.excess is not None else self.shift
        assert known is not None, "an op that does nothing"
        part = y[:, : len(known)]
        if self.excess is not None:
            part += self.excess.to(y.dtype) * part
        if self.shift is not None:
            part += self.shift.to(y.dtype)

    def layout(self) -> tuple[int, Sequence[Tensor | None], Sequence[int]]:
        """As the library has it."""
        known = self.excess if self.excess is not None else self.shift
        assert known is not None, "an op that does nothing"
        return 0, (self.excess, self.shift), (len(known),)


@dataclass(frozen=True, eq=False)
class SharedLowRank(RowOp):
    """A low-rank update from a corner of two tensors, scaled in the middle and at the end.

    Semantics: ``y += ((x @ a[:in]) * inner) @ b[:, :out] * outer``.
    Shape: ``a`` [at least in, r]; ``b`` [r, at least out]; ``inner`` [r]; ``outer`` [out].
    """

    a: Tensor
    b: Tensor
    inner: Tensor
    outer: Tensor

    def twin(self, x: Tensor, y: Tensor) -> None:
        """The twin."""
        a, b, out = self.a[: x.shape[1]], self.b[:, : len(self.outer)], len(self.outer)
        hidden = (x @ a.to(x.dtype)) * self.inner.to(x.dtype)
        y[:, :out] += (hidden @ b.to(x.dtype)) * self.outer.to(x.dtype)

    def layout(self) -> tuple[int, Sequence[Tensor | None], Sequence[int]]:
        """As the library has it."""
        return 1, (self.a, self.b, self.inner, self.outer), (len(self.inner), len(self.outer), self.b.shape[1])


@dataclass(frozen=True, eq=False)
class Kron(RowOp):
    """The Kronecker product of two matrices, never built.

    Semantics: with ``x`` and ``y`` read as matrices [in1, in2] and [out1, out2]: ``y += w1 @ x @ down @ up``, without
    ``up`` where it is None.
    Shape: ``w1`` [out1, in1]; ``down`` [in2, r] and ``up`` [r, out2], or ``down`` [in2, out2].
    """

    w1: Tensor
    down: Tensor
    up: Tensor | None

    def twin(self, x: Tensor, y: Tensor) -> None:
        """The twin."""
        given = x.reshape(len(x), -1, len(self.down)) @ self.down.to(x.dtype)
        if self.up is not None:
            given = given @ self.up.to(x.dtype)
        update = (self.w1.to(x.dtype) @ given).flatten(1)
        y[:, : update.shape[1]] += update

    def layout(self) -> tuple[int, Sequence[Tensor | None], Sequence[int]]:
        """As the library has it."""
        last = self.down if self.up is None else self.up
        return 2, (self.w1, self.down, self.up), (*self.w1.shape, *self.down.shape, last.shape[1])


@dataclass(frozen=True, eq=False)
class Rotation(RowOp):
    """Features, block by block, times a small matrix.

    Semantics: ``y[p] += y[p] @ change[k]`` for the places ``p`` of every block ``k`` of ``b`` features. With ``fold`` 1
    these are ``kb .. (k + 1) b``; otherwise two runs of ``b / 2`` features, ``fold`` such runs apart.
    Shape: ``change`` [out / b, b, b], or [1, b, b] for all blocks.
    """

    change: Tensor
    fold: int = 1

    def twin(self, x: Tensor, y: Tensor) -> None:
        """The twin."""
        b = self.change.shape[-1]
        shape = (len(y), -1, b) if self.fold == 1 else (len(y), -1, 2, self.fold, b // 2)
        blocks = y.reshape(shape)
        if self.fold != 1:
            blocks = blocks.transpose(2, 3).reshape(len(y), -1, b)
        turned = (blocks[:, :, None] @ self.change.to(y.dtype)).squeeze(2)
        if self.fold != 1:
            turned = turned.view(len(y), -1, self.fold, 2, b // 2).transpose(2, 3)
        y += turned.reshape(y.shape)

    def layout(self) -> tuple[int, Sequence[Tensor | None], Sequence[int]]:
        """As the library has it."""
        return 3, (self.change,), (*self.change.shape[:2], self.fold)


class RowOpTable:
    """The ops of one adapter: at place ``i`` those of ``places[i]``, one after another; none beyond the last.

    ``mask`` has a bit for every place that has any.
    """

    def __init__(self, places: Sequence[Sequence[RowOp]]) -> None:
        self.places = places  # keeps the tensors alive
        self.mask = sum(1 << place for place, ops in enumerate(places) if ops)
        self.is_plain = all(op.is_plain for ops in places for op in ops)
        self._ops = torch.tensor([op.numbers() for ops in places for op in ops], dtype=torch.int64)
        first, size = self._ops.data_ptr(), self._ops.stride(0) * self._ops.element_size() if len(self._ops) else 0
        starts = accumulate(map(len, places), initial=0)
        rows = [[first + start * size, len(ops)] for start, ops in zip(starts, places, strict=False)]
        self._places = torch.tensor(rows, dtype=torch.int64)
        self.address = self._places.data_ptr()


class RowOpRows:
    """Whose ops the rows of a batch get: (table, start, stop) for each segment. Segments do not overlap."""

    def __init__(self, segments: Sequence[tuple[RowOpTable, int, int]]) -> None:
        self.segments = segments  # keeps the tables alive
        self.mask = 0  # the places where any row gets ops
        for table, _, _ in segments:
            self.mask |= table.mask
        self.is_plain = all(table.is_plain for table, _, _ in segments)
        rows = [(table.address, len(table.places), start, stop) for table, start, stop in segments]
        self._numbers = torch.tensor(rows, dtype=torch.int64)
        self.address, self.count = self._numbers.data_ptr(), len(segments)


def apply_row_ops(x: Tensor, y: Tensor, maps: LowRankMaps, rows: RowOpRows) -> None:
    """Apply the ops of all ``maps`` to the rows of ``y`` that get them, in place.

    Semantics: for every segment of ``rows`` and every (place, column) of ``maps``, the ops of ``table.places[place]``
    on ``y[start:stop, column:]``, from ``x[start:stop]``, one after another.
    Shape: ``x`` [T, in], ``y`` [T, the columns of all maps], rows any distance apart.
    """
    if not rows.is_plain or not y.is_cpu or native.library() is None:
        apply_row_ops_torch(x, y, maps, rows)
    elif native.is_native(x, y) and y.dtype == torch.float32:
        _apply(x, y, maps, rows)
    else:
        changed = y.float().contiguous()
        _apply(x.float().contiguous(), changed, maps, rows)
        y.copy_(changed)


def _apply(x: Tensor, y: Tensor, maps: LowRankMaps, rows: RowOpRows) -> None:
    _APPLY_ROW_OPS(
        x.data_ptr(), x.stride(0), x.shape[1], y.data_ptr(), y.stride(0), y.shape[1],
        maps.address, maps.count, rows.address, rows.count,
    )  # fmt: skip


def apply_row_ops_torch(x: Tensor, y: Tensor, maps: LowRankMaps, rows: RowOpRows) -> None:
    """The twin of ``apply_row_ops``."""
    for table, start, stop in rows.segments:
        for place, column in maps.maps:
            for op in table.places[place] if place < len(table.places) else ():
                op.twin(x[start:stop], y[start:stop, column:])
