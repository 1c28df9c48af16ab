"""Attention over the paged cache, plugged into unmodified transformers models through AttentionInterface.

Architectures that do not use the interface are brought to ``attend`` by a patch, in ``server.model.families``. The
function sees queries, keys and values after any norm and rotary embedding. It stores the new keys and values, then
attends: where the cache can be read in place, all rows in one call; elsewhere all single-token rows in one, every
prefill chunk in one of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from hotkernels.attention import AttentionRule
from server.model.step import DecodePart, PrefillPart, current

NAME = "hotswap_paged"


@dataclass(frozen=True, eq=False)
class Rule:
    """How one layer attends.

    ``scaling`` of the logits, ``window`` of positions seen, ``softcap`` of the logits, ``sinks``
    [Hq], and ``bias``: what is added to the scaled logits, from key positions [K] to [Hq, K].
    """

    scaling: float
    window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None
    bias: Callable[[Tensor], Tensor] | None = None
    _tables: list[AttentionRule] = field(default_factory=list, init=False, repr=False)

    @property
    def plain(self) -> bool:
        """Whether scaled_dot_product_attention can do it."""
        return self.softcap is None and self.sinks is None and self.bias is None

    def table(self, positions: int) -> AttentionRule:
        """The same with the bias of at least so many positions; kept until more are asked for."""
        if not self._tables or (self._tables[0].bias is not None and self._tables[0].bias.shape[1] < positions):
            bias = None if self.bias is None else self.bias(torch.arange(_power_of_two(positions))).float()
            self._tables[:] = [AttentionRule(self.scaling, self.window or 0, self.softcap or 0.0, self.sinks, bias)]
        return self._tables[0]


def _power_of_two(least: int) -> int:
    return 1 << max(least - 1, 0).bit_length()


@cache
def _simple_rule(scaling: float, window: int | None, softcap: float | None) -> Rule:
    return Rule(scaling, window, softcap)


def paged_attention(  # noqa: PLR0917 - the signature is transformers'
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention of a packed ragged batch.

    Shape: ``query`` [1, Hq, T, D]; ``key``, ``value`` [1, Hkv, T, D]; returns [1, T, Hq, Dv].
    Semantics: softmax(softcap(q k^T * scaling)) v over the positions of the row's own sequence, in a window if one
    is given; ``s_aux`` [Hq] are attention sinks: one more logit per head that takes weight and gives no value.
    """
    if attention_mask is not None or position_bias is not None or not getattr(module, "is_causal", True):
        raise ValueError("it attends by a mask or bias of its own, or not causally")  # see architecture_check
    layer: int = module.layer_idx  # type: ignore[assignment]
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    rule = _simple_rule(scaling, sliding_window, softcap)
    return attend(layer, query, key, value, rule if s_aux is None else replace(rule, sinks=s_aux)), None


def attend(layer: int, query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
    """Store ``key`` and ``value`` and attend, by the current step. Shape: as ``paged_attention``."""
    step = current()
    step.cache.write(layer, step.slots, key[0].transpose(0, 1), value[0].transpose(0, 1))
    q = query[0].transpose(0, 1)  # [T, Hq, D]
    if step.sequences is not None and step.cache.is_read_in_place:
        return step.cache.attend(layer, q, step.sequences, rule.table(step.num_positions))[None].to(query.dtype)
    out = torch.empty(*q.shape[:2], value.shape[-1], dtype=query.dtype, device=query.device)
    if step.decode is not None:
        keys, values = step.cache.read(layer, step.decode.slots)
        out.index_copy_(0, step.decode.rows, _decode(q, keys, values, step.decode, rule))
    for part in step.prefills:
        keys, values = step.cache.read(layer, part.slots)
        out[part.row : part.row + part.count] = _prefill(q, keys, values, part, rule)
    return out[None]


def _decode(q: Tensor, keys: Tensor, values: Tensor, part: DecodePart, rule: Rule) -> Tensor:
    rows = q.index_select(0, part.rows)
    batch, heads, dim = rows.shape
    grouped = rows.view(batch, keys.shape[1], -1, dim)  # query heads of one KV head act as its query positions
    mask = part.mask(rule.window)
    if rule.plain:
        out = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask, scale=rule.scaling)
    else:
        sinks = None if rule.sinks is None else rule.sinks.view(1, keys.shape[1], -1, 1)
        mask = _with_bias(mask, rule, (1, keys.shape[1], -1, keys.shape[2]))
        out = _explicit(grouped, keys, values, mask, replace(rule, sinks=sinks))
    return out.reshape(batch, heads, -1)


def _prefill(q: Tensor, keys: Tensor, values: Tensor, part: PrefillPart, rule: Rule) -> Tensor:
    rows = q[part.row : part.row + part.count].transpose(0, 1)[None]  # [1, Hq, n, D]
    group = rows.shape[1] // keys.shape[1]
    keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
    mask = part.mask(rule.window)
    if rule.plain:
        out = F.scaled_dot_product_attention(rows, keys, values, mask, is_causal=mask is None, scale=rule.scaling)
    else:
        if mask is None:
            mask = torch.ones(part.count, part.count, dtype=torch.bool, device=q.device).tril()
        sinks = None if rule.sinks is None else rule.sinks.view(1, -1, 1, 1)
        mask = _with_bias(mask, rule, (1, rows.shape[1], 1, keys.shape[2]))
        out = _explicit(rows, keys, values, mask, replace(rule, sinks=sinks))
    return out[0].transpose(0, 1)


def _with_bias(mask: Tensor, rule: Rule, shape: tuple[int, ...]) -> Tensor:
    """``mask``, or with a bias what is added to the logits, in fp32; the key positions come last in ``shape``."""
    if rule.bias is None:
        return mask
    bias = rule.bias(torch.arange(shape[-1], device=mask.device)).float()
    return bias.view(shape).masked_fill(~mask, float("-inf"))


def _explicit(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, rule: Rule) -> Tensor:
    """Attention written out, for what scaled_dot_product_attention has no argument for."""
    logits = (q @ k.transpose(-1, -2)).float() * rule.scaling
    if rule.softcap is not None:
        logits = torch.tanh(logits / rule.softcap) * rule.softcap
    logits = logits + mask if mask.is_floating_point() else logits.masked_fill(~mask, float("-inf"))
    if rule.sinks is not None:
        logits = torch.cat([logits, rule.sinks.float().expand(*logits.shape[:-1], 1)], -1)
    weights = logits.softmax(-1)[..., : k.shape[-2]]
    return weights.to(v.dtype) @ v


AttentionInterface.register(NAME, paged_attention)
