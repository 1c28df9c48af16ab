"""Attention of T5's two stacks over packed ragged batches and the paged cache.

T5's attention modules compute one dense position bias for a rectangular batch, so their forward is bound to ours; the
projections in them stay the base's own, with the adapters' ops on them. T5 does not scale its logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from server.model.kv_cache import LayerShape
from server.model.step import DecodePart, PrefillPart, Step, current


@dataclass(eq=False)
class DecoderStep(Step):
    """A step of the decoder stack.

    ``decode`` and ``prefills`` say what self-attention reads: the adapter's prefix, then the decoder's positions.
    ``cross`` and ``cross_prefills`` say the same of cross-attention, for the same rows in the same order: the slots of
    the encoder's positions.
    """

    cross: DecodePart | None = None
    cross_prefills: Sequence[PrefillPart] = ()


Output = tuple[Tensor, Any, None]


@dataclass(frozen=True, eq=False)
class PositionBias:
    """What is added to the logits of one step's self-attention, -inf where a position is not seen.

    A stack's first layer makes it, and the stack hands it to the others in place of T5's dense bias.
    Shape: ``decode`` [B, H, 1, K]; ``prefills`` [1, H, n, k] each. Of cross-attention: only which positions are seen.
    """

    decode: Tensor | None
    prefills: Sequence[Tensor | None]


def bind_attention(model: PreTrainedModel) -> None:
    """Let every attention module of a T5 ``model`` attend through the current step."""
    for block in model.encoder.block:
        _EncoderAttention(block.layer[0].SelfAttention).bind()
    for block in model.decoder.block:
        _DecoderAttention(block.layer[0].SelfAttention).bind()
        _CrossAttention(block.layer[1].EncDecAttention).bind()


def layer_shapes(model: PreTrainedModel) -> list[LayerShape]:
    """What each decoder layer stores for a position, be it one of the encoder's or of its own."""
    modules = [block.layer[0].SelfAttention for block in model.decoder.block]
    return [LayerShape(m.n_heads, m.key_value_proj_dim, m.key_value_proj_dim) for m in modules]


def write_source(model: PreTrainedModel, encoded: Tensor) -> None:
    """Store every decoder layer's cross-attention keys and values of the encoder's output [1, T, d_model]."""
    step = current()
    for layer, block in enumerate(model.decoder.block):
        module = block.layer[1].EncDecAttention
        step.cache.write(layer, step.slots, _heads(module, module.k(encoded)), _heads(module, module.v(encoded)))


class _Attention:
    """The forward of one attention module."""

    def __init__(self, module: Any) -> None:
        self.module = module

    def bind(self) -> None:
        self.module.forward = self.forward

    def forward(self, hidden_states: Tensor, position_bias: PositionBias | None = None, **_: Any) -> Output:
        """Shape: ``hidden_states`` [1, T, d_model]. Returns what T5's own does: output, bias, no weights."""
        raise NotImplementedError

    def _finish(self, out: Tensor, bias: PositionBias | None) -> Output:
        projected: Tensor = self.module.o(out.reshape(1, len(out), -1))
        return projected, bias, None


class _EncoderAttention(_Attention):
    """Every row attends to all rows of its own prompt."""

    def forward(self, hidden_states: Tensor, position_bias: PositionBias | None = None, **_: Any) -> Output:
        step, module = current(), self.module
        bias = position_bias or PositionBias(None, [_relative(module, *_grid(part)) for part in step.prefills])
        q, k, v = (_heads(module, linear(hidden_states)) for linear in (module.q, module.k, module.v))
        out = torch.empty_like(q)
        for part, added in zip(step.prefills, bias.prefills, strict=True):
            rows = slice(part.row, part.row + part.count)
            keys, values = k[rows].transpose(0, 1)[None], v[rows].transpose(0, 1)[None]
            out[rows] = _attend(q[rows].transpose(0, 1)[None], keys, values, added)[0].transpose(0, 1)
        return self._finish(out, bias)


class _DecoderAttention(_Attention):
    """Every row attends to its adapter's prefix and to its sequence's decoder positions up to its own."""

    def forward(self, hidden_states: Tensor, position_bias: PositionBias | None = None, **_: Any) -> Output:
        step, module = current(), self.module
        bias = position_bias or self._bias(step)
        q, k, v = (_heads(module, linear(hidden_states)) for linear in (module.q, module.k, module.v))
        step.cache.write(module.layer_idx, step.slots, k, v)
        out = _read_cache(module.layer_idx, q, step.decode, step.prefills, bias)
        return self._finish(out, bias)

    def _bias(self, step: Step) -> PositionBias:
        decode = None if step.decode is None else self._decode_bias(step.decode)
        return PositionBias(decode, [self._prefill_bias(part) for part in step.prefills])

    def _decode_bias(self, part: DecodePart) -> Tensor:
        key = torch.arange(part.slots.shape[1], device=part.slots.device)
        added = _relative(self.module, part.lengths[:, None, None] - 1, key[None, None])
        return added.masked_fill(~part.mask(None), float("-inf"))

    def _prefill_bias(self, part: PrefillPart) -> Tensor:
        query, key = _grid(part)
        return _relative(self.module, query, key).masked_fill((key > query)[:, None], float("-inf"))


class _CrossAttention(_Attention):
    """Every row attends to all encoder positions of its sequence, whose keys and values lie in the cache."""

    def forward(self, hidden_states: Tensor, position_bias: PositionBias | None = None, **_: Any) -> Output:
        step, module = current(), self.module
        assert isinstance(step, DecoderStep), "the decoder runs in a step of its own"
        q = _heads(module, module.q(hidden_states))
        seen = PositionBias(None if step.cross is None else step.cross.mask(None), [None] * len(step.cross_prefills))
        return self._finish(_read_cache(module.layer_idx, q, step.cross, step.cross_prefills, seen), None)


def _read_cache(
    layer: int, q: Tensor, decode: DecodePart | None, prefills: Sequence[PrefillPart], bias: PositionBias
) -> Tensor:
    """Attention of all rows [T, H, D] to what lies in the cache: single rows in one call, others by sequence."""
    cache, out = current().cache, torch.empty_like(q)
    if decode is not None:
        rows = q.index_select(0, decode.rows)[:, :, None]
        attended = _attend(rows, *cache.read(layer, decode.slots), bias.decode)
        out.index_copy_(0, decode.rows, attended[:, :, 0])
    for part, added in zip(prefills, bias.prefills, strict=True):
        rows = q[part.row : part.row + part.count].transpose(0, 1)[None]
        attended = _attend(rows, *cache.read(layer, part.slots), added)
        out[part.row : part.row + part.count] = attended[0].transpose(0, 1)
    return out


def _attend(q: Tensor, k: Tensor, v: Tensor, added: Tensor | None) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=added, scale=1.0)


def _heads(module: Any, projected: Tensor) -> Tensor:
    """[1, T, H * D] as [T, H, D]."""
    return projected[0].view(-1, module.n_heads, module.key_value_proj_dim)


def _grid(part: PrefillPart) -> tuple[Tensor, Tensor]:
    """Positions of a part's queries [1, n, 1] and keys [1, 1, k]."""
    key = torch.arange(part.slots.shape[1], device=part.slots.device)
    return key[None, part.start : part.start + part.count, None], key[None, None]


def _relative(module: Any, query: Tensor, key: Tensor) -> Tensor:
    """T5's learned bias of the distances of ``key`` from ``query`` ([B, Q, 1] and [1, 1, K]): [B, H, Q, K]."""
    bucket = module._relative_position_bucket(
        key - query,
        bidirectional=not module.is_decoder,
        num_buckets=module.relative_attention_num_buckets,
        max_distance=module.relative_attention_max_distance,
    )
    bias: Tensor = module.relative_attention_bias(bucket)
    return bias.permute(0, 3, 1, 2)
