"""Where the sequences of one step stand: their rows in the batch, those of one adapter together, and their slots."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from adapters.batch.rows import Segment
from server.model.inputs import VIRTUAL, SequenceInput
from server.model.pool import AdapterPool
from server.registry import AdapterKey


@dataclass(frozen=True)
class Placed:
    """A sequence and its first row in the batch."""

    sequence: SequenceInput
    row: int

    @property
    def count(self) -> int:
        """Rows of the sequence."""
        return len(self.sequence.token_ids)

    @property
    def num_inactive(self) -> int:
        """Rows before the sequence's adapter is activated; they are the base's."""
        return min(max(self.sequence.activate_from - self.sequence.start, 0), self.count)

    @property
    def total(self) -> int:
        """Positions of the sequence, those of earlier steps included."""
        return self.sequence.start + self.count


def place(sequences: Sequence[SequenceInput]) -> list[Placed]:
    """Give every sequence its rows, sorted by adapter; returned in the given order."""
    order = sorted(range(len(sequences)), key=lambda i: str(sequences[i].adapter or ""))
    rows, row = [0] * len(sequences), 0
    for i in order:
        rows[i] = row
        row += len(sequences[i].token_ids)
    return [Placed(s, r) for s, r in zip(sequences, rows, strict=True)]


def slots_of(placed: Placed, block_size: int, device: torch.device) -> Tensor:
    """Where positions 0 .. total-1 of the sequence lie in the cache."""
    blocks = torch.tensor(placed.sequence.block_table, dtype=torch.long, device=device)
    offsets = torch.arange(block_size, device=device)
    return (blocks[:, None] * block_size + offsets).flatten()[: placed.total]


def padded(rows: Sequence[Tensor]) -> Tensor:
    """Rows of unequal length as one table, each filled up with its own last entry.

    Padding is masked, but a masked NaN is still a NaN: a row must read no slot that it did not write itself.
    """
    width = max(map(len, rows))
    return torch.stack([torch.cat([row, row[-1:].expand(width - len(row))]) for row in rows])


def row_segments(by_row: Iterable[Placed]) -> list[Segment]:
    """Whose the rows of the batch are, the sequences in the order of their rows."""
    return _segments((p.sequence.adapter, p.row + p.num_inactive, p.count - p.num_inactive) for p in by_row)


def head_segments(placed: Sequence[Placed]) -> list[Segment]:
    """Whose the rows are that reach the output head: those with logits wanted, in the order of the sequences."""
    counts = [len(p.sequence.logits_at) for p in placed]
    starts = [0, *accumulate(counts)]
    inactive = [sum(i < p.num_inactive for i in p.sequence.logits_at) for p in placed]
    runs = zip(placed, starts, counts, inactive, strict=False)
    return _segments((p.sequence.adapter, start + skip, n - skip) for p, start, n, skip in runs)


def virtual_rows(
    placed: Sequence[Placed], pool: AdapterPool, device: torch.device
) -> tuple[Tensor | None, Tensor | None]:
    """Rows of prompt adapters' virtual tokens, and the embeddings that belong there."""
    rows: list[int] = []
    parts: list[Tensor] = []
    for p in placed:
        count = sum(token == VIRTUAL for token in p.sequence.token_ids)
        if count and p.sequence.adapter is not None:
            prompt = pool[p.sequence.adapter].prompt
            assert prompt is not None, "only prompt adapters have virtual tokens to compute"
            rows += range(p.row, p.row + count)
            parts.append(prompt.embeds[p.sequence.start : p.sequence.start + count])
    if not rows:
        return None, None
    return torch.tensor(rows, dtype=torch.long, device=device), torch.cat(parts)


def _segments(runs: Iterable[tuple[AdapterKey | None, int, int]]) -> list[Segment]:
    """Runs of rows (adapter, first, count) as segments; neighbours of the same adapter become one."""
    segments: list[Segment] = []
    for adapter, start, count in runs:
        if adapter is None or not count:
            continue
        if segments and segments[-1].member == adapter and segments[-1].stop == start:
            segments[-1] = Segment(adapter, segments[-1].start, start + count)
        else:
            segments.append(Segment(adapter, start, start + count))
    return segments
