"""Ops of many kinds at linear maps, run by one native op where their tensors lie, without groups.

Where an adapter's ops on one side of a linear map are all such as ``hotkernels.row_ops`` knows, they go into a table of
its own, made once when the adapter becomes resident. So adapters that join or leave a batch cost nothing, and how many
kinds are in it little.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass

from torch import Tensor

from adapters.batch.low_rank import JoinedMaps, Ops, Places
from adapters.ops import Op
from hotkernels import native
from hotkernels.row_ops import RowOp, RowOpRows, RowOpTable, apply_row_ops


@dataclass(frozen=True, eq=False)
class RowOpTables:
    """What an adapter does to the inputs and the outputs of linear maps."""

    before: RowOpTable
    after: RowOpTable


@dataclass(frozen=True, eq=False)
class RowChanges:
    """What is done to the inputs and the outputs of linear maps, for the rows of a batch."""

    places: Places
    before: RowOpRows
    after: RowOpRows

    def act_at(self, maps: JoinedMaps) -> bool:
        """Whether anything is done to any row at these."""
        return bool((self.before.mask | self.after.mask) & maps.among(self.places).mask)

    def change_input(self, maps: JoinedMaps) -> bool:
        """Whether any row gets another input at these."""
        return bool(self.before.mask & maps.among(self.places).mask)

    def changed_input(self, x: Tensor, maps: JoinedMaps) -> Tensor:
        """What a linear map is to be given instead of ``x`` [T, in], which stays as it is."""
        if not self.change_input(maps):
            return x
        given = x.clone()
        apply_row_ops(given, given, maps.among(self.places), self.before)
        return given

    def change_output(self, x: Tensor, y: Tensor, maps: JoinedMaps) -> None:
        """Change the maps' outputs ``y`` [T, out] in place; their input was ``x`` [T, in]."""
        known = maps.among(self.places)
        if self.after.mask & known.mask:
            apply_row_ops(x, y, known, self.after)


def split_row_ops(ops: Ops, places: Places, linears: Container[str]) -> tuple[RowOpTables | None, Ops]:
    """The ops of an adapter at ``linears`` that can be run so, and those that are left, both in their order."""
    if native.library() is None:
        return None, ops
    taken: dict[str, dict[int, list[RowOp]]] = {"input": {}, "output": {}}
    rest: dict[str, tuple[Op, ...]] = {}
    for module, listed in ops.items():
        left = listed
        for side, found in taken.items():
            mine = [op for op in listed if side == op.SIDE]
            row_ops = [op for op in (op.row_op() for op in mine) if op is not None and op.is_plain]
            if row_ops and len(row_ops) == len(mine) and module in linears:
                found[places.number(module)] = row_ops
                left = tuple(op for op in left if op not in mine)
        if left:
            rest[module] = left
    if not any(taken.values()):
        return None, ops
    return RowOpTables(_table(taken["input"]), _table(taken["output"])), rest


def _table(found: dict[int, list[RowOp]]) -> RowOpTable:
    return RowOpTable([found.get(place, []) for place in range(max(found, default=-1) + 1)])


def row_changes(segments: Iterable[tuple[RowOpTables | None, int, int]], places: Places) -> RowChanges | None:
    """What is done to rows ``start .. stop`` by each adapter; None without any."""
    mine = [(tables, start, stop) for tables, start, stop in segments if tables is not None]
    if not mine:
        return None
    before = [(tables.before, start, stop) for tables, start, stop in mine if tables.before.mask]
    after = [(tables.after, start, stop) for tables, start, stop in mine if tables.after.mask]
    return RowChanges(places, RowOpRows(before), RowOpRows(after))
