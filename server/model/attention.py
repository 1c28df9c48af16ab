"""Attention over the paged cache, plugged into unmodified transformers models through AttentionInterface.

The function sees queries, keys and values after any norm and rotary embedding. It stores the new keys and values,
then attends: all single-token rows in one call, every prefill chunk in one of its own.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from server.model.step import DecodePart, PrefillPart, current

NAME = "hotswap_paged"


def paged_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention of a packed ragged batch.

    Shape: ``query`` [1, Hq, T, D]; ``key``, ``value`` [1, Hkv, T, D]; returns [1, T, Hq, Dv].
    Semantics: softmax(softcap(q k^T * scaling)) v over the positions of the row's own sequence, in a window if one
    is given; ``s_aux`` [Hq] are attention sinks: one more logit per head that takes weight and gives no value.
    """
    step = current()
    layer: int = module.layer_idx  # type: ignore[assignment]
    step.cache.write(layer, step.slots, key[0].transpose(0, 1), value[0].transpose(0, 1))
    q = query[0].transpose(0, 1)  # [T, Hq, D]
    out = torch.empty(*q.shape[:2], value.shape[-1], dtype=query.dtype, device=query.device)
    extras = (scaling, softcap, s_aux)
    if step.decode is not None:
        keys, values = step.cache.read(layer, step.decode.slots)
        out.index_copy_(0, step.decode.rows, _decode(q, keys, values, step.decode, sliding_window, *extras))
    for part in step.prefills:
        keys, values = step.cache.read(layer, part.slots)
        out[part.row : part.row + part.count] = _prefill(q, keys, values, part, sliding_window, *extras)
    return out[None], None


def _decode(
    q: Tensor, keys: Tensor, values: Tensor, part: DecodePart, window: int | None,
    scaling: float | None, softcap: float | None, sinks: Tensor | None,
) -> Tensor:  # fmt: skip
    rows = q.index_select(0, part.rows)
    batch, heads, dim = rows.shape
    grouped = rows.view(batch, keys.shape[1], -1, dim)  # query heads of one KV head act as its query positions
    mask = part.mask(window)
    if softcap is None and sinks is None:
        out = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask, scale=scaling)
    else:
        per_head = None if sinks is None else sinks.view(1, keys.shape[1], -1, 1)
        out = _explicit(grouped, keys, values, mask, scaling, softcap, per_head)
    return out.reshape(batch, heads, -1)


def _prefill(
    q: Tensor, keys: Tensor, values: Tensor, part: PrefillPart, window: int | None,
    scaling: float | None, softcap: float | None, sinks: Tensor | None,
) -> Tensor:  # fmt: skip
    rows = q[part.row : part.row + part.count].transpose(0, 1)[None]  # [1, Hq, n, D]
    group = rows.shape[1] // keys.shape[1]
    keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
    mask = part.mask(window)
    if softcap is None and sinks is None:
        out = F.scaled_dot_product_attention(rows, keys, values, mask, is_causal=mask is None, scale=scaling)
    else:
        if mask is None:
            mask = torch.ones(part.count, part.count, dtype=torch.bool, device=q.device).tril()
        out = _explicit(rows, keys, values, mask, scaling, softcap, None if sinks is None else sinks.view(1, -1, 1, 1))
    return out[0].transpose(0, 1)


def _explicit(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scaling: float | None, softcap: float | None, sinks: Tensor | None
) -> Tensor:
    """Attention written out, for what scaled_dot_product_attention has no argument for."""
    logits = (q @ k.transpose(-1, -2)).float() * (q.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    logits = logits.masked_fill(~mask, float("-inf"))
    if sinks is not None:
        logits = torch.cat([logits, sinks.float().expand(*logits.shape[:-1], 1)], -1)
    weights = logits.softmax(-1)[..., : k.shape[-2]]
    return weights.to(v.dtype) @ v


AttentionInterface.register(NAME, paged_attention)
