"""Which rows of a batch belong to which adapter, in the forms the grouped kernels need.

Knows nothing of ops or modules: only segments of rows and members of a group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Segments longer than this (prefill chunks) run as a product of their own: padding every other member of the group
# to their length would cost more than the extra call.
MAX_PADDED_ROWS = 8


@dataclass(frozen=True)
class RowSegment:
    """Rows ``start .. stop`` of the batch belong to ``member`` (an adapter; any hashable)."""

    member: object
    start: int
    stop: int


@dataclass(frozen=True, eq=False)
class RowPlan:
    """Where the rows of a group's members stand in the batch.

    ``long`` is (index of the member in the group, start, stop) of segments handled one by one. The others are
    gathered to a padded [G, width] table: ``gather`` [G * width] are row numbers (padding repeats row 0),
    ``flat`` [N] the places in that table that are real, ``rows`` [N] the rows they stand for.
    ``segments`` are all of them as ``long`` has them.
    """

    long: tuple[tuple[int, int, int], ...]
    width: int
    gather: Tensor
    flat: Tensor
    rows: Tensor
    segments: tuple[tuple[int, int, int], ...]


def plan_rows(members: Sequence[object], segments: Sequence[RowSegment], device: torch.device) -> RowPlan:
    """Lay out the rows of ``members``; segments of others are left out."""
    index = {member: i for i, member in enumerate(members)}
    mine = tuple((index[s.member], s.start, s.stop) for s in segments if s.member in index)
    split = len(members) == 1  # a lone member needs no table
    long = tuple(s for s in mine if split or s[2] - s[1] > MAX_PADDED_ROWS)
    lists: list[list[int]] = [[] for _ in members]
    if not split:
        for i, start, stop in mine:
            if stop - start <= MAX_PADDED_ROWS:
                lists[i].extend(range(start, stop))
    return _table(long, lists, mine, device)


def _table(
    long: tuple[tuple[int, int, int], ...],
    lists: list[list[int]],
    segments: tuple[tuple[int, int, int], ...],
    device: torch.device,
) -> RowPlan:
    width = max(map(len, lists))
    gather = [row for rows in lists for row in (*rows, *[0] * (width - len(rows)))]
    flat = [i * width + j for i, rows in enumerate(lists) for j in range(len(rows))]
    rows = [row for rows in lists for row in rows]
    return RowPlan(
        long,
        width,
        torch.tensor(gather, dtype=torch.long, device=device),
        torch.tensor(flat, dtype=torch.long, device=device),
        torch.tensor(rows, dtype=torch.long, device=device),
        segments,
    )
