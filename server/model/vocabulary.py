"""Logits of a batch whose adapters have different vocabularies: every row as wide as the widest, the rest masked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from adapters.batch.rows import Segment
from server.model.pool import AdapterPool
from server.registry import AdapterKey


def mask_unknown(logits: Tensor, segments: Sequence[Segment], pool: AdapterPool, num_logits: int) -> Tensor:
    """``logits`` with minus infinity for tokens that a row's adapter, or the base, does not have.

    Done behind the model, as some models change logits behind their head. ``num_logits`` are the base's; rows outside
    of ``segments`` are the base's too. Shape: ``logits`` [n, width], width at least that of every adapter concerned.
    """
    sizes = [pool[cast(AdapterKey, segment.member)].num_logits for segment in segments]
    width = logits.shape[-1]
    if width == num_logits and not any(sizes):
        return logits
    known = torch.full((len(logits), 1), num_logits)
    for segment, size in zip(segments, sizes, strict=True):
        if size is not None:
            known[segment.start : segment.stop] = size
    unknown = torch.arange(width, device=logits.device) >= known.to(logits.device)
    return logits.masked_fill(unknown, -torch.inf)
