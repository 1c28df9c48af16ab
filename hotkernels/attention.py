"""Attention over a paged cache, for rows that decode and rows that prefill alike, and what is stored there.

Keys and values are kept in float32, bfloat16, float16, or int8 with a scale per slot and head: code times scale.
They lie in pages of as many slots each, any distance apart: slot ``page * slots of a page + place``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hotkernels import native
from hotkernels.program import Program, Rows, Variable

_STORED = {**native.STORED, torch.int8: 3}  # as attention_cache.h numbers them
_ATTENTION = native.Function("paged_attention", "piiiippppiiiiiiiippppiiififppip")
_WRITE = native.Function("write_cache", "piipiipippppiiiiiiii")
_MOST = 127  # the largest code of int8

Scales = tuple[Tensor, Tensor]  # of int8 keys and values, each [pages, page, Hkv] float32


@dataclass(frozen=True, eq=False)
class Sequences:
    """Where the sequences of a batch stand, and where their keys and values lie.

    Sequence s has batch rows ``row[s] .. row[s] + count[s]``, which are its positions ``start[s] ..``; position p lies
    in slot ``blocks[s, p // block_size] * block_size + p % block_size`` of the cache, and a block in one page of it.
    Shape: ``row``, ``count``, ``start`` [S] int32; ``blocks`` [S, most blocks] int32, filled up with any number.
    """

    row: Tensor
    count: Tensor
    start: Tensor
    blocks: Tensor
    block_size: int

    def __post_init__(self) -> None:
        tensors = (self.row, self.count, self.start, self.blocks)
        assert all(t.dtype == torch.int32 and t.is_contiguous() for t in tensors)


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


def paged_attention(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    sequences: Sequences,
    rule: AttentionRule,
    *,
    scales: Scales | None = None,
) -> Tensor:
    """Causal attention of every row over its own sequence.

    Semantics: with l[p] = softcap(q . keys[p] * scaling) + bias[p] over the positions p that the row sees (its own and
    those before it, in the window), the softmax of l (and the sink) times values. Positions are taken in runs that
    begin at multiples of a constant, so a row's result does not depend on what else is computed with it; no row reads
    what it does not see.
    Shape: ``q`` [T, Hq, D] float32, its rows and heads any distance apart; ``keys`` [pages, page, Hkv, D], ``values``
    [pages, page, Hkv, Dv] float32, bfloat16, float16, or int8 with ``scales`` of both, [pages, page, Hkv] float32; each
    page in one piece; returns [T, Hq, Dv] float32, rows of no sequence 0.
    """
    if not native.is_native(q, keys, values):
        return paged_attention_torch(q, keys, values, sequences, rule, scales=scales)
    num_rows, heads, dim = q.shape
    _, page, kv_heads, value_dim = values.shape
    s, sinks, bias = sequences, rule.sinks, rule.bias
    assert page % s.block_size == 0
    if sinks is not None:
        sinks = sinks.float().contiguous()
    if bias is not None:
        assert bias.stride(1) == 1
        assert not s.row.numel() or int((s.start + s.count).max()) <= bias.shape[1]
    out = torch.empty(num_rows, heads, value_dim)
    _ATTENTION(
        q.data_ptr(), q.stride(0), q.stride(1), num_rows, heads, *cache_numbers(keys, values, scales),
        kv_heads, dim, value_dim, s.row.data_ptr(),
        s.count.data_ptr(), s.start.data_ptr(), s.blocks.data_ptr(), s.blocks.shape[0], s.blocks.shape[1], s.block_size,
        rule.scaling, rule.window, rule.softcap, native.pointer(sinks), native.pointer(bias),
        0 if bias is None else bias.stride(0), out.data_ptr(),
    )  # fmt: skip
    return out


@dataclass(frozen=True)
class SequencesAt:
    """Where a program finds the parts of ``Sequences``, how many of them there are, and blocks of the longest."""

    row: Variable
    count: Variable
    start: Variable
    blocks: Variable
    number: Variable
    width: Variable
    block_size: Variable


@dataclass(frozen=True)
class CacheAt:
    """Where a program finds the keys and values of a layer: ``cache_numbers`` are what the variables are to be."""

    keys: Variable
    values: Variable
    key_scale: Variable
    value_scale: Variable
    page: Variable
    keys_apart: Variable
    values_apart: Variable
    scales_apart: Variable
    stored: Variable


def cache_numbers(keys: Tensor, values: Tensor, scales: Scales | None) -> tuple[int, ...]:
    """Where a cache as ``paged_attention`` takes it lies: what an op is told of it, in the order of ``CacheAt``."""
    assert (scales is not None) == (keys.dtype == torch.int8)
    assert all(t[0].is_contiguous() for t in (keys, values, *(scales or ())))
    assert scales is None or scales[0].stride(0) == scales[1].stride(0)
    at = [0, 0] if scales is None else [t.data_ptr() for t in scales]
    apart = keys.stride(0), values.stride(0), 0 if scales is None else scales[0].stride(0)
    return keys.data_ptr(), values.data_ptr(), *at, keys.shape[1], *apart, _STORED[keys.dtype]


def add_attention(
    program: Program,
    q: Rows,
    y: Variable,
    rule: AttentionRule,
    *,
    cache: CacheAt,
    sequences: SequencesAt,
    heads: tuple[int, int, int],
) -> None:
    """Add ``paged_attention`` to a program: ``heads`` are Hq, Hkv and D, which Dv is too. The rule has no bias."""
    assert rule.bias is None
    assert rule.sinks is None or (rule.sinks.dtype == torch.float32 and rule.sinks.is_contiguous())
    s = sequences
    num_heads, kv_heads, dim = heads
    program.add(
        _ATTENTION, q.at, q.stride, dim, q.count, num_heads, *_arguments(cache),
        kv_heads, dim, dim, s.row, s.count, s.start, s.blocks, s.number, s.width, s.block_size,
        rule.scaling, rule.window, rule.softcap, native.pointer(rule.sinks), None, 0, y,
    )  # fmt: skip


def paged_attention_torch(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    sequences: Sequences,
    rule: AttentionRule,
    *,
    scales: Scales | None = None,
) -> Tensor:
    """The twin of ``paged_attention``."""
    out = q.new_zeros(*q.shape[:2], values.shape[-1], dtype=torch.float32)
    for row, count, start, blocks in zip(
        sequences.row.tolist(), sequences.count.tolist(), sequences.start.tolist(), sequences.blocks, strict=True
    ):
        position = torch.arange(start + count, device=q.device)
        slots = blocks.long()[position // sequences.block_size] * sequences.block_size + position % sequences.block_size
        query = position[start:, None]
        seen = (position <= query) & ((position > query - rule.window) | (rule.window == 0))
        key, value = (
            read_cache(t, slots, scale) for t, scale in zip((keys, values), scales or (None, None), strict=True)
        )
        out[row : row + count] = _attend(q[row : row + count], key, value, seen, rule)
    return out


def _attend(q: Tensor, keys: Tensor, values: Tensor, seen: Tensor, rule: AttentionRule) -> Tensor:
    """Shape: ``q`` [n, Hq, D]; ``keys`` [K, Hkv, D]; ``values`` [K, Hkv, Dv]; ``seen`` [n, K]; returns [n, Hq, Dv]."""
    group = q.shape[1] // keys.shape[1]
    keys, values = (t.repeat_interleave(group, 1).transpose(0, 1) for t in (keys, values))
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


def write_cache(
    k: Tensor,
    v: Tensor,
    slots: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    scales: Scales | None = None,
) -> None:
    """Store keys and values at their slots, in the type of the cache.

    Semantics: ``keys[slots] = k``, rounded to the nearest; a finite number is at most the largest of float16 there.
    int8 codes are ``round(k / scale)`` with the scale of a slot and head ``max |k| / 127``, NaN where a number of it is
    not finite.
    Shape: ``k`` [T, Hkv, D], ``v`` [T, Hkv, Dv], rows and heads any distance apart; ``slots`` [T] int64, no two alike;
    the cache as in ``paged_attention``.
    """
    if not (native.is_native(k, v, keys, values) and v.dtype == torch.float32 and slots.is_contiguous()):
        return write_cache_torch(k, v, slots, keys, values, scales=scales)
    num_rows, kv_heads, dim = k.shape
    _WRITE(
        k.data_ptr(), k.stride(0), k.stride(1), v.data_ptr(), v.stride(0), v.stride(1), slots.data_ptr(), num_rows,
        *cache_numbers(keys, values, scales), kv_heads, dim, v.shape[2],
    )  # fmt: skip
    return None


def add_cache_write(
    program: Program, k: Rows, v: Variable, slots: Variable, *, cache: CacheAt, heads: int, dim: int
) -> None:
    """Add ``write_cache`` to a program: of as many heads of keys and of values, whose rows lie as those of ``k`` do."""
    program.add(
        _WRITE, k.at, k.stride, dim, v, k.stride, dim, slots, k.count, *_arguments(cache), heads, dim, dim,
    )  # fmt: skip


def _arguments(c: CacheAt) -> tuple[Variable, ...]:
    return (
        c.keys, c.values, c.key_scale, c.value_scale, c.page, c.keys_apart, c.values_apart, c.scales_apart, c.stored,
    )  # fmt: skip


def write_cache_torch(
    k: Tensor,
    v: Tensor,
    slots: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    scales: Scales | None = None,
) -> None:
    """The twin of ``write_cache``."""
    for x, stored, step in zip((k, v), (keys, values), scales or (None, None), strict=True):
        if step is None:
            stored[_places(stored, slots)] = _saturated(x, stored.dtype).to(stored.dtype)
            continue
        scale = x.float().abs().amax(-1) / _MOST
        codes = (x.float() / scale[..., None]).round().nan_to_num(0.0).clamp(-_MOST, _MOST)
        stored[_places(stored, slots)] = codes.to(torch.int8)
        step[_places(step, slots)] = scale.where(scale.isfinite(), torch.nan)


def _places(stored: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
    """Page and place in it, for indexing."""
    page = stored.shape[1]
    return slots // page, slots % page


def _saturated(x: Tensor, stored: torch.dtype) -> Tensor:
    """A key beyond float16 is a large one, and an infinite one would spoil its row."""
    if stored != torch.float16 or x.dtype == torch.float16:
        return x
    largest = torch.finfo(stored).max
    return x.clamp(-largest, largest).where(x.isfinite(), x)


def read_cache(
    stored: Tensor, slots: Tensor, scale: Tensor | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Keys or values at ``slots`` [n] in ``dtype``, [n, Hkv, D]; with the scale of int8."""
    numbers = stored[_places(stored, slots)]
    if scale is not None:
        numbers = numbers.float() * scale[_places(scale, slots)][..., None]
    return numbers.to(dtype)
