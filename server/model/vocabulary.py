"""Logits of a batch whose adapters have different vocabularies: every row as wide as the widest, the rest masked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor
from torch.nn.functional import pad

from adapters.batch.rows import Segment
from server.model.pool import AdapterPool
from server.registry import AdapterKey


def mask_unknown(logits: Tensor, segments: Sequence[Segment], pool: AdapterPool, num_logits: int) -> Tensor:
    """``logits`` with minus infinity for tokens that a row's adapter, or the base, does not write.

    Done behind the model, as some models change logits behind their head. ``num_logits`` are the base's; rows outside
    of ``segments`` are the base's too. Shape: ``logits`` [n, width]; the result is wider where an adapter reads tokens
    that it does not write, so that every token of its prompts has a column.
    """
    adapters = [pool[cast(AdapterKey, segment.member)] for segment in segments]
    width = max([logits.shape[-1], *(adapter.vocab_size or 0 for adapter in adapters)])
    if width == num_logits and not any(adapter.num_logits for adapter in adapters):
        return logits
    known = torch.full((len(logits), 1), num_logits)
    for segment, adapter in zip(segments, adapters, strict=True):
        known[segment.start : segment.stop] = adapter.num_logits or num_logits
    unknown = torch.arange(width, device=logits.device) >= known.to(logits.device)
    return pad(logits, (0, width - logits.shape[-1])).masked_fill(unknown, -torch.inf)
