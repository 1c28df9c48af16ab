"""Turns one step's plain integers into the tensors of a ``Step``."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from server.model.inputs import ModelInput
from server.model.kv_cache import KVCache
from server.model.layout import Placed, head_segments, padded, place, row_segments, slots_of, virtual_rows
from server.model.pool import AdapterPool
from server.model.step import DecodePart, PrefillPart, Step


@dataclass(frozen=True, eq=False)
class Assembled:
    """A step and the model's arguments for it: all tensors [T], ``logits_rows`` [n]."""

    step: Step
    input_ids: Tensor
    positions: Tensor
    logits_rows: Tensor


def assemble(inputs: ModelInput, cache: KVCache, pool: AdapterPool, device: torch.device) -> Assembled:
    """Lay the sequences out in rows, equal adapters together, and build everything the model's modules look up."""
    placed = place(inputs.sequences)
    by_adapter = sorted(placed, key=lambda p: p.row)
    slots = [slots_of(p, cache.block_size, device) for p in by_adapter]
    embed_rows, embeds = virtual_rows(by_adapter, pool, device)
    groups = pool.groups(frozenset(p.sequence.adapter for p in placed if p.sequence.adapter is not None))
    step = Step(
        cache=cache,
        slots=torch.cat([s[p.sequence.start :] for s, p in zip(slots, by_adapter, strict=True)]),
        decode=_decode_part([(p, s) for p, s in zip(by_adapter, slots, strict=True) if p.count == 1], device),
        prefills=[
            PrefillPart(p.row, p.count, p.sequence.start, s[None])
            for p, s in zip(by_adapter, slots, strict=True)
            if p.count > 1
        ],
        segments=row_segments(by_adapter),
        head_segments=head_segments(placed),
        groups=groups,
        embed_rows=embed_rows,
        embeds=embeds,
        head_width=pool.num_logits if groups else 0,
    )
    token_ids = [t for p in by_adapter for t in p.sequence.token_ids]
    positions = [i for p in by_adapter for i in range(p.sequence.start, p.total)]
    wanted = [p.row + i for p in placed for i in p.sequence.logits_at]
    return Assembled(step, *(torch.tensor(v, dtype=torch.long, device=device) for v in (token_ids, positions, wanted)))


def _decode_part(rows: list[tuple[Placed, Tensor]], device: torch.device) -> DecodePart | None:
    if not rows:
        return None
    return DecodePart(
        rows=torch.tensor([p.row for p, _ in rows], dtype=torch.long, device=device),
        slots=padded([slots for _, slots in rows]),
        lengths=torch.tensor([p.total for p, _ in rows], dtype=torch.long, device=device),
    )
