"""One step of an encoder-decoder: the encoder pass over new prompts, then the decoder pass over its new tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adapters.batch.grouped import Groups
from server.model.inputs import ModelInput, SequenceInput
from server.model.kv_cache import KVCache
from server.model.layout import Placed, head_segments, padded, place, row_segments, slots_of, virtual_rows
from server.model.pool import AdapterPool
from server.model.step import DecodePart, PrefillPart, Step


@dataclass(eq=False)
class DecoderStep(Step):
    """A step of the decoder stack.

    ``decode`` and ``prefills`` say what self-attention reads: the adapter's prefix, then the decoder's positions.
    ``cross`` and ``cross_prefills`` say the same of cross-attention, for the same rows in the same order: the slots of
    the encoder's positions.
    """

    cross: DecodePart | None = None
    cross_prefills: Sequence[PrefillPart] = ()


@dataclass(frozen=True, eq=False)
class Pass:
    """A step of one stack and its input. Shape: ``input_ids`` [T]; ``logits_rows`` [n], none for the encoder."""

    step: Step
    input_ids: Tensor
    logits_rows: Tensor


def encoder_pass(inputs: ModelInput, cache: KVCache, pool: AdapterPool, device: torch.device) -> Pass | None:
    """The encoder's part of a step; None when no prompt is new."""
    sequences = [_source(s) for s in inputs.sequences if s.start < s.decoder_start]
    if not sequences:
        return None
    by_row = sorted(place(sequences), key=lambda p: p.row)
    slots = [slots_of(p, cache.block_size, device)[p.sequence.start :] for p in by_row]
    embed_rows, embeds = virtual_rows(by_row, pool, device)
    step = Step(
        cache=cache,
        slots=torch.cat(slots),
        decode=None,
        prefills=[PrefillPart(p.row, p.count, 0, s[None]) for p, s in zip(by_row, slots, strict=True)],
        segments=row_segments(by_row),
        head_segments=[],
        groups=_groups(sequences, pool),
        embed_rows=embed_rows,
        embeds=embeds,
    )
    return Pass(step, _token_ids(by_row, device), torch.empty(0, dtype=torch.long, device=device))


def decoder_pass(inputs: ModelInput, cache: KVCache, pool: AdapterPool, device: torch.device) -> Pass:
    """The decoder's part of a step."""
    sequences = [_target(s) for s in inputs.sequences]
    placed = place(sequences)
    by_row = sorted(placed, key=lambda p: p.row)
    rows = [_Read.of(p, cache.block_size, pool, device) for p in by_row]
    one, many = [r for r in rows if r.placed.count == 1], [r for r in rows if r.placed.count > 1]
    step = DecoderStep(
        cache=cache,
        slots=torch.cat([r.own[-r.placed.count :] for r in rows]),
        decode=_decode_part(one, [r.own for r in one], device),
        prefills=[PrefillPart(r.placed.row, r.placed.count, len(r.own) - r.placed.count, r.own[None]) for r in many],
        segments=row_segments(by_row),
        head_segments=head_segments(placed),
        groups=_groups(sequences, pool),
        cross=_decode_part(one, [r.source for r in one], device),
        cross_prefills=[PrefillPart(r.placed.row, r.placed.count, 0, r.source[None]) for r in many],
    )
    wanted = [p.row + i for p in placed for i in p.sequence.logits_at]
    return Pass(step, _token_ids(by_row, device), torch.tensor(wanted, dtype=torch.long, device=device))


@dataclass(frozen=True, eq=False)
class _Read:
    """A sequence of the decoder, and the slots that self-attention (``own``) and cross-attention read."""

    placed: Placed
    own: Tensor
    source: Tensor

    @staticmethod
    def of(placed: Placed, block_size: int, pool: AdapterPool, device: torch.device) -> _Read:
        sequence = placed.sequence
        prefix = None if sequence.adapter is None else pool[sequence.adapter].prefix
        given = 0 if prefix is None else prefix.keys.shape[1]
        slots = slots_of(placed, block_size, device)
        own = torch.cat([slots[:given], slots[sequence.decoder_start :]])
        return _Read(placed, own, slots[given : sequence.decoder_start])


def _source(sequence: SequenceInput) -> SequenceInput:
    """What the encoder computes of a sequence. Bidirectional attention cannot be cut, so it is always all of it."""
    count = sequence.decoder_start - sequence.start
    assert len(sequence.token_ids) > count, "a prompt is encoded whole, with the decoder's first token"
    return SequenceInput(sequence.adapter, sequence.token_ids[:count], sequence.start, sequence.block_table, [])


def _target(sequence: SequenceInput) -> SequenceInput:
    """What the decoder computes of a sequence."""
    skipped = max(0, sequence.decoder_start - sequence.start)
    return SequenceInput(
        sequence.adapter,
        sequence.token_ids[skipped:],
        sequence.start + skipped,
        sequence.block_table,
        [i - skipped for i in sequence.logits_at],
        sequence.decoder_start,
    )


def _decode_part(reads: Sequence[_Read], slots: Sequence[Tensor], device: torch.device) -> DecodePart | None:
    if not reads:
        return None
    return DecodePart(
        rows=torch.tensor([r.placed.row for r in reads], dtype=torch.long, device=device),
        slots=padded(slots),
        lengths=torch.tensor([len(s) for s in slots], dtype=torch.long, device=device),
    )


def _groups(sequences: Sequence[SequenceInput], pool: AdapterPool) -> Mapping[str, Groups]:
    return pool.groups(frozenset(s.adapter for s in sequences if s.adapter is not None))


def _token_ids(by_row: Sequence[Placed], device: torch.device) -> Tensor:
    return torch.tensor([t for p in by_row for t in p.sequence.token_ids], dtype=torch.long, device=device)
