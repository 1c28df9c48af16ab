"""Where the sequences of one step stand, those of one adapter together, and the tensors of a ``Step`` made of that."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from adapters.batch.rows import RowSegment
from hotkernels.attention import Sequences
from server.adapter_key import AdapterKey, order_of
from server.model.adapter_pool import AdapterPool
from server.model.inputs import VIRTUAL, ModelInput, SequenceInput
from server.model.kv_cache import KVCache
from server.model.step import DecodePart, PrefillPart, Step


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
    order = sorted(range(len(sequences)), key=lambda i: order_of(sequences[i].adapter))
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


def row_segments(by_row: Iterable[Placed]) -> list[RowSegment]:
    """Whose the rows of the batch are, the sequences in the order of their rows."""
    return _segments((p.sequence.adapter, p.row + p.num_inactive, p.count - p.num_inactive) for p in by_row)


def head_segments(placed: Sequence[Placed]) -> list[RowSegment]:
    """Whose the rows are that reach the output head: those with logits wanted, in the order of the sequences."""
    counts = [len(p.sequence.logits_at) for p in placed]
    starts = [0, *accumulate(counts)]
    inactive = [sum(i < p.num_inactive for i in p.sequence.logits_at) for p in placed]
    runs = zip(placed, starts, counts, inactive, strict=False)
    return _segments((p.sequence.adapter, start + skip, n - skip) for p, start, n, skip in runs)


def virtual_rows(
    placed: Sequence[Placed], pool: AdapterPool, device: torch.device
) -> tuple[Tensor | None, Tensor | None]:
    """Rows of prompt adapters' virtual tokens and of prompts' own embeddings, and those that belong there."""
    rows: list[int] = []
    parts: list[Tensor] = []
    for p in placed:
        count = sum(token == VIRTUAL for token in p.sequence.token_ids)
        if count and p.sequence.adapter is not None:
            prompt = pool[p.sequence.adapter].prompt
            assert prompt is not None, "only prompt adapters have virtual tokens to compute"
            rows += range(p.row, p.row + count)
            parts.append(prompt.embeds[p.sequence.start : p.sequence.start + count])
        if (own := p.sequence.embeds) is not None:
            rows += range(p.row + own.at, p.row + own.at + own.count)
            numbers = torch.frombuffer(bytearray(own.rows), dtype=torch.float32)
            parts.append(numbers.view(own.count, -1).to(device))
    if not rows:
        return None, None
    return torch.tensor(rows, dtype=torch.long, device=device), torch.cat(parts)


def _segments(runs: Iterable[tuple[AdapterKey | None, int, int]]) -> list[RowSegment]:
    """Runs of rows (adapter, first, count) as segments; neighbours of the same adapter become one."""
    segments: list[RowSegment] = []
    for adapter, start, count in runs:
        if adapter is None or not count:
            continue
        if segments and segments[-1].member == adapter and segments[-1].stop == start:
            segments[-1] = RowSegment(adapter, segments[-1].start, start + count)
        else:
            segments.append(RowSegment(adapter, start, start + count))
    return segments


@dataclass(frozen=True, eq=False)
class Assembled:
    """A step and the model's arguments for it: all tensors [T], ``logits_rows`` [n], ``hidden_rows`` [m]."""

    step: Step
    input_ids: Tensor
    positions: Tensor
    logits_rows: Tensor
    hidden_rows: Tensor


def assemble(inputs: ModelInput, cache: KVCache, pool: AdapterPool, device: torch.device) -> Assembled:
    """Lay the sequences out in rows, equal adapters together, and build everything the model's modules look up."""
    placed = place(inputs.sequences)
    by_adapter = sorted(placed, key=lambda p: p.row)
    embed_rows, embeds = virtual_rows(by_adapter, pool, device)
    active = frozenset(p.sequence.adapter for p in placed if p.sequence.adapter is not None)
    segments, at_head = row_segments(by_adapter), head_segments(placed)
    decode, prefills = (None, []) if cache.is_read_in_place else _parts(by_adapter, cache.block_size, device)
    step = Step(
        cache=cache,
        slots=new_slots(by_adapter, cache.block_size, device),
        decode=decode,
        prefills=prefills,
        segments=segments,
        head_segments=at_head,
        groups=pool.groups(active),
        low_rank=pool.low_rank(segments),
        head_low_rank=pool.low_rank(at_head),
        row_ops=pool.row_ops(segments),
        head_row_ops=pool.row_ops(at_head),
        embed_rows=embed_rows,
        embeds=embeds,
        head_width=pool.num_logits(active),
        sequences=_sequences(by_adapter, cache.block_size) if device.type == "cpu" else None,
        num_positions=max((p.total for p in placed), default=0),
    )
    token_ids = [t for p in by_adapter for t in p.sequence.token_ids]
    positions = [i for p in by_adapter for i in range(p.sequence.start, p.total)]
    wanted = [p.row + i for p in placed for i in p.sequence.logits_at]
    hidden = [p.row + i for p in placed for i in p.sequence.hidden_at]
    step.wants_hidden = bool(hidden)
    numbers = (token_ids, positions, wanted, hidden)
    return Assembled(step, *(torch.tensor(v, dtype=torch.long, device=device) for v in numbers))


def new_slots(by_row: Sequence[Placed], block_size: int, device: torch.device) -> Tensor:
    """Where the batch's rows go in the cache, [T]."""
    slots = [
        p.sequence.block_table[i // block_size] * block_size + i % block_size
        for p in by_row
        for i in range(p.sequence.start, p.total)
    ]
    return torch.tensor(slots, dtype=torch.long, device=device)


def _sequences(by_row: Sequence[Placed], block_size: int) -> Sequences:
    width = max((len(p.sequence.block_table) for p in by_row), default=0)
    tables = [[*p.sequence.block_table, *[0] * (width - len(p.sequence.block_table))] for p in by_row]
    numbers = ([p.row for p in by_row], [p.count for p in by_row], [p.sequence.start for p in by_row])
    row, count, start = torch.tensor(numbers, dtype=torch.int32).unbind()
    blocks = torch.tensor(tables, dtype=torch.int32).view(len(by_row), width)
    return Sequences(row, count, start, blocks, block_size)


def _parts(
    by_row: Sequence[Placed], block_size: int, device: torch.device
) -> tuple[DecodePart | None, list[PrefillPart]]:
    slots = [(p, slots_of(p, block_size, device)) for p in by_row]
    decode = _decode_part([(p, s) for p, s in slots if p.count == 1], device)
    return decode, [PrefillPart(p.row, p.count, p.sequence.start, s[None]) for p, s in slots if p.count > 1]


def _decode_part(rows: list[tuple[Placed, Tensor]], device: torch.device) -> DecodePart | None:
    if not rows:
        return None
    return DecodePart(
        rows=torch.tensor([p.row for p, _ in rows], dtype=torch.long, device=device),
        slots=padded([slots for _, slots in rows]),
        lengths=torch.tensor([p.total for p, _ in rows], dtype=torch.long, device=device),
    )
