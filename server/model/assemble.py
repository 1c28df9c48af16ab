"""Turns one step's plain integers into the tensors of a ``Step``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from adapters.batch.rows import Segment
from server.model.inputs import VIRTUAL, ModelInput, SequenceInput
from server.model.kv_cache import KVCache
from server.model.pool import AdapterPool
from server.model.step import DecodePart, PrefillPart, Step
from server.registry import AdapterKey


@dataclass(frozen=True, eq=False)
class Assembled:
    """A step and the model's arguments for it: all tensors [T], ``logits_rows`` [n]."""

    step: Step
    input_ids: Tensor
    positions: Tensor
    logits_rows: Tensor


@dataclass(frozen=True)
class _Placed:
    """A sequence and its first row in the batch."""

    sequence: SequenceInput
    row: int

    @property
    def count(self) -> int:
        return len(self.sequence.token_ids)

    @property
    def total(self) -> int:
        return self.sequence.start + self.count


def assemble(inputs: ModelInput, cache: KVCache, pool: AdapterPool, device: torch.device) -> Assembled:
    """Lay the sequences out in rows, equal adapters together, and build everything the model's modules look up."""
    placed = _place(inputs.sequences)
    by_adapter = sorted(placed, key=lambda p: p.row)
    slots = [_slots(p, cache.block_size, device) for p in by_adapter]
    embed_rows, embeds = _virtual_rows(by_adapter, pool, device)
    step = Step(
        cache=cache,
        slots=torch.cat([s[p.sequence.start :] for s, p in zip(slots, by_adapter, strict=True)]),
        decode=_decode_part([(p, s) for p, s in zip(by_adapter, slots, strict=True) if p.count == 1], device),
        prefills=[
            PrefillPart(p.row, p.count, p.sequence.start, s[None])
            for p, s in zip(by_adapter, slots, strict=True)
            if p.count > 1
        ],
        segments=_segments((p.sequence.adapter, p.row, p.count) for p in by_adapter),
        head_segments=_head_segments(placed),
        groups=pool.groups(frozenset(p.sequence.adapter for p in placed if p.sequence.adapter is not None)),
        embed_rows=embed_rows,
        embeds=embeds,
    )
    token_ids = [t for p in by_adapter for t in p.sequence.token_ids]
    positions = [i for p in by_adapter for i in range(p.sequence.start, p.total)]
    wanted = [p.row + i for p in placed for i in p.sequence.logits_at]
    return Assembled(step, *(torch.tensor(v, dtype=torch.long, device=device) for v in (token_ids, positions, wanted)))


def _place(sequences: Sequence[SequenceInput]) -> list[_Placed]:
    """Give every sequence its rows, sorted by adapter; returned in the given order."""
    order = sorted(range(len(sequences)), key=lambda i: str(sequences[i].adapter or ""))
    rows, row = [0] * len(sequences), 0
    for i in order:
        rows[i] = row
        row += len(sequences[i].token_ids)
    return [_Placed(s, r) for s, r in zip(sequences, rows, strict=True)]


def _slots(placed: _Placed, block_size: int, device: torch.device) -> Tensor:
    """Where positions 0 .. total-1 of the sequence lie in the cache."""
    blocks = torch.tensor(placed.sequence.block_table, dtype=torch.long, device=device)
    offsets = torch.arange(block_size, device=device)
    return (blocks[:, None] * block_size + offsets).flatten()[: placed.total]


def _decode_part(rows: list[tuple[_Placed, Tensor]], device: torch.device) -> DecodePart | None:
    if not rows:
        return None
    return DecodePart(
        rows=torch.tensor([p.row for p, _ in rows], dtype=torch.long, device=device),
        slots=_padded([slots for _, slots in rows]),
        lengths=torch.tensor([p.total for p, _ in rows], dtype=torch.long, device=device),
    )


def _padded(rows: list[Tensor]) -> Tensor:
    """Rows of unequal length as one table, each filled up with its own last entry.

    Padding is masked, but a masked NaN is still a NaN: a row must read no slot that it did not write itself.
    """
    width = max(map(len, rows))
    return torch.stack([torch.cat([row, row[-1:].expand(width - len(row))]) for row in rows])


def _head_segments(placed: Sequence[_Placed]) -> list[Segment]:
    """Whose the rows are that reach the output head: those with logits wanted, in the order of the sequences."""
    counts = [len(p.sequence.logits_at) for p in placed]
    starts = [0, *accumulate(counts)]
    return _segments((p.sequence.adapter, start, n) for p, start, n in zip(placed, starts, counts, strict=False))


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


def _virtual_rows(
    placed: Sequence[_Placed], pool: AdapterPool, device: torch.device
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
