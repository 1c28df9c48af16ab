"""Attention over a paged cache, for rows that decode and rows that prefill alike."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Sequences:
    """Where the sequences of a batch stand, and where their keys and values lie.

    Sequence s has batch rows ``row[s] .. row[s] + count[s]``, which are its positions ``start[s] ..``; position p lies
    in slot ``blocks[s, p // block_size] * block_size + p % block_size`` of the cache.
    Shape: ``row``, ``count``, ``start`` [S] int32; ``blocks`` [S, most blocks] int32, filled up with any number.
    """

    row: Tensor
    count: Tensor
    start: Tensor
    blocks: Tensor
    block_size: int


@dataclass(frozen=True, eq=False)
class AttentionRule:
    """How a layer attends.

    ``scaling`` of the logits, ``window`` of positions seen (0: all), ``softcap`` of the logits (0: none), ``sinks``
    [Hq] logits that take weight and give no value, ``bias`` [Hq, positions] added to the logits by key position.
    """

    scaling: float
    window: int = 0
    softcap: float = 0.0
    sinks: Tensor | None = None
    bias: Tensor | None = None


def paged_attention(q: Tensor, keys: Tensor, values: Tensor, sequences: Sequences, rule: AttentionRule) -> Tensor:
    """Causal attention of every row over its own sequence.

    Semantics: with l[p] = softcap(q . keys[p] * scaling) + bias[p] over the positions p that the row sees (its own and
    those before it, in the window), the softmax of l (and the sink) times values. Positions are taken in runs that
    begin at multiples of a constant, so a row's result does not depend on what else is computed with it.
    Shape: ``q`` [T, Hq, D] float32, its rows any distance apart; ``keys`` [slots, Hkv, D], ``values`` [slots, Hkv, Dv]
    float32, bfloat16 or float16; returns [T, Hq, Dv] float32, rows of no sequence 0.
    """
    return paged_attention_torch(q, keys, values, sequences, rule)


def paged_attention_torch(q: Tensor, keys: Tensor, values: Tensor, sequences: Sequences, rule: AttentionRule) -> Tensor:
    """The twin of ``paged_attention``."""
    out = q.new_zeros(*q.shape[:2], values.shape[-1], dtype=torch.float32)
    for row, count, start, blocks in zip(
        sequences.row.tolist(), sequences.count.tolist(), sequences.start.tolist(), sequences.blocks, strict=True
    ):
        position = torch.arange(start + count, device=q.device)
        slots = blocks.long()[position // sequences.block_size] * sequences.block_size + position % sequences.block_size
        query = position[start:, None]
        seen = (position <= query) & ((position > query - rule.window) | (rule.window == 0))
        out[row : row + count] = _attend(q[row : row + count], keys[slots], values[slots], seen, rule)
    return out


def _attend(q: Tensor, keys: Tensor, values: Tensor, seen: Tensor, rule: AttentionRule) -> Tensor:
    """Shape: ``q`` [n, Hq, D]; ``keys`` [K, Hkv, D]; ``values`` [K, Hkv, Dv]; ``seen`` [n, K]; returns [n, Hq, Dv]."""
    group = q.shape[1] // keys.shape[1]
    keys, values = (t.float().repeat_interleave(group, 1).transpose(0, 1) for t in (keys, values))
    logits = q.float().transpose(0, 1) @ keys.mT * rule.scaling  # [Hq, n, K]
    if rule.softcap:
        logits = torch.tanh(logits / rule.softcap) * rule.softcap
    if rule.bias is not None:
        logits = logits + rule.bias[:, None, : logits.shape[-1]]
    logits = logits.masked_fill(~seen, float("-inf"))
    if rule.sinks is not None:
        logits = torch.cat([logits, rule.sinks.float()[:, None, None].expand(*logits.shape[:-1], 1)], -1)
    weights = logits.softmax(-1)[..., : keys.shape[1]]
    return (weights @ values).transpose(0, 1)
