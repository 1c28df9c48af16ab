"""The low-rank updates of linear maps, which most adapters are: run by one native op where they lie, without groups.

An adapter's ``LowRank`` that stands first among a linear map's output ops goes into a table of its own, made once when
the adapter becomes resident. So adapters that join or leave a batch cost nothing, and idle ones less.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from adapters.checkpoints import checkpoint
from adapters.ops import Adapter, LowRank, Op
from hotkernels import native
from hotkernels.low_rank import LowRankFactors, LowRankMaps, LowRankRows, LowRankTable, add_low_rank
from hotkernels.memory import LINE, LargePages

Ops = Mapping[str, tuple[Op, ...]]


class Places:
    """Numbers of modules, given in the order in which they are asked for."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def number(self, module: str) -> int:
        """The number of ``module``, always the same."""
        return self._numbers.setdefault(module, len(self._numbers))


@dataclass(frozen=True, eq=False)
class RowUpdates:
    """The low-rank updates of the rows of a batch."""

    places: Places
    rows: LowRankRows


class JoinedMaps:
    """Linear maps that are computed in one: module names, each with the column where its outputs begin."""

    def __init__(self, columns: Mapping[str, int]) -> None:
        self._columns = columns
        self._places: Places | None = None
        self._maps = LowRankMaps([])

    def among(self, places: Places) -> LowRankMaps:
        """These by number. Kept: a step asks at every product, and a model has one ``Places``."""
        if places is not self._places:
            self._maps = LowRankMaps([(places.number(name), column) for name, column in self._columns.items()])
            self._places = places
        return self._maps

    def change(self, updates: RowUpdates) -> bool:
        """Whether there is any of the ``updates`` here."""
        places = [place for place, _ in self.among(updates.places).maps]
        return any(table.acts_at(place) for table, _, _ in updates.rows.segments for place in places)

    def add(self, x: Tensor, y: Tensor, updates: RowUpdates) -> None:
        """Add the updates to ``y`` [T, out] in place; the maps' input was ``x`` [T, in]."""
        add_low_rank(x, y, self.among(updates.places), updates.rows)


def split_low_rank(ops: Ops, places: Places) -> tuple[LowRankTable | None, Ops]:
    """The low-rank updates of an adapter that can be run so, and the ops that are left, both in their order."""
    if native.library() is None:
        return None, ops
    found: dict[int, LowRankFactors] = {}
    rest: dict[str, tuple[Op, ...]] = {}
    for module, listed in ops.items():
        left = listed
        first = next((op for op in listed if op.SIDE == "output"), None)
        if type(first) is LowRank and (factors := LowRankFactors(first.a, first.b)).is_plain:
            found[places.number(module)] = factors
            left = tuple(op for op in listed if op is not first)
        if left:
            rest[module] = left
    if not found:
        return None, ops
    return LowRankTable([found.get(number) for number in range(max(found) + 1)]), rest


def with_factors_together(adapter: Adapter) -> Adapter:
    """``adapter`` with the factors of its low-rank updates side by side in memory, as products read them."""
    ops = (op for listed in adapter.ops.values() for op in listed if type(op) is LowRank)
    factors = {id(tensor): tensor.nbytes for op in ops for tensor in op.tensors()}
    memory = LargePages(sum(factors.values()) + LINE * len(factors))

    def placed(tensor: Tensor) -> Tensor:
        checkpoint()
        return memory.copy(tensor) if id(tensor) in factors else tensor

    return adapter.map(placed)


def row_updates(segments: Iterable[tuple[LowRankTable | None, int, int]], places: Places) -> RowUpdates | None:
    """The updates of rows ``start .. stop`` by each table; None without any."""
    mine = [(table, start, stop) for table, start, stop in segments if table is not None]
    return RowUpdates(places, LowRankRows(mine)) if mine else None
