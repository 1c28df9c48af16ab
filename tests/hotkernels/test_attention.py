"""Attention over a paged cache: against its twin, and bit for bit the same however rows are batched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from hotkernels import native
from hotkernels.attention import (
    AttentionRule,
    Scales,
    Sequences,
    paged_attention,
    paged_attention_torch,
    read_cache,
    write_cache,
    write_cache_torch,
)
from tests.hotkernels.conftest import THREADS

pytestmark = pytest.mark.numeric

STORED = (torch.float32, torch.bfloat16, torch.float16, torch.int8)
SHAPES = {  # query heads, KV heads, sizes of keys and values
    "grouped": (9, 3, 64, 64),
    "one for all": (40, 1, 16, 16),
    "one each": (2, 2, 80, 128),
    "odd": (6, 2, 37, 5),
    "large": (2, 1, 256, 256),
}
RULES = {
    "plain": AttentionRule(0.125),
    "window": AttentionRule(0.2, window=5),
    "wide window": AttentionRule(0.2, window=150),
    "softcap": AttentionRule(0.125, softcap=2.0),
    "sinks": AttentionRule(0.125, sinks=torch.linspace(-3, 3, 40)),
    "bias": AttentionRule(0.125, bias=torch.linspace(0.01, 0.5, 40)[:, None] * torch.arange(400)),
}
RULES["all"] = AttentionRule(0.125, 140, 5.0, RULES["sinks"].sinks, RULES["bias"].bias)
BLOCK_SIZE, PAGE = 7, 21


@dataclass
class Cache:
    """A cache of random numbers in one layer, and the queries of every position of each sequence in it."""

    keys: Tensor
    values: Tensor
    scales: Scales | None
    queries: list[Tensor]
    tables: list[list[int]]

    @staticmethod
    def of(
        lengths: Sequence[int],
        shape: tuple[int, int, int, int] = SHAPES["grouped"],
        stored: torch.dtype = torch.float32,
    ) -> Cache:
        """Blocks in random order, and NaN or nonsense where no sequence has a position."""
        heads, kv_heads, dim, value_dim = shape
        counts = [-(-n // BLOCK_SIZE) for n in lengths]
        order = torch.randperm(sum(counts) + 2).tolist()
        tables = [[order.pop() for _ in range(count)] for count in counts]
        slots = torch.cat([slots_of(table, n) for table, n in zip(tables, lengths, strict=True)])
        keys, values, scales = cache_of((sum(counts) + 2) * BLOCK_SIZE, kv_heads, dim, value_dim, stored)
        k, v = torch.randn(len(slots), kv_heads, dim), torch.randn(len(slots), kv_heads, value_dim)
        write_cache_torch(k, v, slots, keys, values, scales=scales)
        return Cache(keys, values, scales, [torch.randn(n, heads, dim) for n in lengths], tables)

    def attend(self, parts: Sequence[tuple[int, int, int]], rule: AttentionRule, *, twin: bool = False) -> list[Tensor]:
        """Attention of parts of sequences (number, first position, count), computed in one call."""
        count = torch.tensor([n for _, _, n in parts], dtype=torch.int32)
        row = (count.cumsum(0) - count).int()
        width = max(len(self.tables[s]) for s, _, _ in parts)
        tables = [self.tables[s] + [10**6] * (width - len(self.tables[s])) for s, _, _ in parts]
        start = torch.tensor([first for _, first, _ in parts], dtype=torch.int32)
        sequences = Sequences(row, count, start, torch.tensor(tables, dtype=torch.int32), BLOCK_SIZE)
        q = torch.cat([self.queries[s][first : first + n] for s, first, n in parts])
        op = paged_attention_torch if twin else paged_attention
        out = op(q, self.keys, self.values, sequences, rule, scales=self.scales)
        return [out[r : r + n] for r, n in zip(row.tolist(), count.tolist(), strict=True)]


def slots_of(table: list[int], length: int) -> Tensor:
    return torch.tensor([table[p // BLOCK_SIZE] * BLOCK_SIZE + p % BLOCK_SIZE for p in range(length)])


def rule_for(name: str, heads: int) -> AttentionRule:
    rule = RULES[name]
    sinks, bias = (None if t is None else t[:heads] for t in (rule.sinks, rule.bias))
    return replace(rule, sinks=sinks, bias=bias)


@pytest.fixture(autouse=True)
def _same_numbers() -> None:
    torch.manual_seed(0)


def assert_is_twin(shape: str, stored: torch.dtype, rule_name: str) -> None:
    lengths = [300, 40, 129, 1, 260]
    cache = Cache.of(lengths, SHAPES[shape], stored)
    parts = [(0, 299, 1), (1, 0, 40), (2, 100, 29), (3, 0, 1), (4, 250, 2)]
    rule = rule_for(rule_name, SHAPES[shape][0])
    got, want = cache.attend(parts, rule), cache.attend(parts, rule, twin=True)
    # a logit is a sum of `dim` products, of about one together; its error multiplies the weight
    dim = SHAPES[shape][2]
    torch.testing.assert_close(torch.cat(got), torch.cat(want), rtol=0, atol=(dim + 64) * 2**-24)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.usefixtures("variant")
def test_every_rule_is_its_twin(rule: str) -> None:
    assert_is_twin("grouped", torch.float32, rule)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("stored", STORED)
@pytest.mark.usefixtures("variant")
def test_every_shape_and_type_is_its_twin(shape: str, stored: torch.dtype) -> None:
    assert_is_twin(shape, stored, "all" if shape == "odd" else "plain")


CHUNKINGS = ([300], [1] * 300, [7, 120, 1, 172], [128, 172], [255, 45], [299, 1])


@pytest.mark.parametrize("rule", ["plain", "all"])
@pytest.mark.parametrize("stored", [torch.float32, torch.int8])
@pytest.mark.parametrize("shape", ["grouped", "one for all", "odd"])
def test_a_row_is_the_same_in_any_batch(variant: str, shape: str, stored: torch.dtype, rule: str) -> None:
    """Alone, in chunks of a prefill, beside others, and on any number of threads."""
    if variant == native.TORCH:
        pytest.skip("torch promises no such thing")
    cache = Cache.of([300, 200, 17, 1], SHAPES[shape], stored)
    applied = rule_for(rule, SHAPES[shape][0])
    native.set_num_threads(1)
    (want,) = cache.attend([(0, 0, 300)], applied)
    others = [(1, 150, 50), (2, 16, 1), (3, 0, 1)]
    for threads in THREADS:
        native.set_num_threads(threads)
        for chunks in CHUNKINGS:
            firsts = [sum(chunks[:i]) for i in range(len(chunks))]
            parts = [(0, first, n) for first, n in zip(firsts, chunks, strict=True)]
            if len(parts) < 10:  # each alone
                assert torch.equal(torch.cat([cache.attend([part], applied)[0] for part in parts]), want)
            assert torch.equal(torch.cat(cache.attend([*others, *parts], applied)[3:]), want)


def test_one_long_sequence_is_cut_alike(variant: str) -> None:
    if variant == native.TORCH:
        pytest.skip("torch promises no such thing")
    cache = Cache.of([2000], (2, 1, 32, 32))
    native.set_num_threads(1)
    (want,) = cache.attend([(0, 1999, 1)], AttentionRule(0.3))
    for threads in (2, 3, 16):
        native.set_num_threads(threads)
        assert torch.equal(cache.attend([(0, 1999, 1)], AttentionRule(0.3))[0], want)


@pytest.mark.usefixtures("variant")
def test_a_row_does_not_depend_on_where_it_lies() -> None:
    """Neither on which blocks are its own, nor on how far apart heads and rows of the query are."""
    cache = Cache.of([90], SHAPES["grouped"])
    (want,) = cache.attend([(0, 60, 30)], RULES["plain"])
    slots = slots_of(cache.tables[0], 90)
    keys, values = cache.keys[in_pages(slots)][None], cache.values[in_pages(slots)][None]
    one = torch.tensor([[0]], dtype=torch.int32)
    sequences = Sequences(one[0], one[0] + 30, one[0] + 60, one, 90)
    wide = torch.full((11, 33, 70), torch.nan)
    q = wide[1:10, 2:32, 3:67].transpose(0, 1)
    q.copy_(cache.queries[0][60:])
    assert q.stride(-1) == 1
    assert torch.equal(paged_attention(q, keys, values, sequences, RULES["plain"]), want)


def test_what_is_not_a_number_spoils_only_who_sees_it(variant: str) -> None:
    if variant == native.TORCH:
        pytest.skip("torch multiplies what is masked by 0")
    cache = Cache.of([200, 40], SHAPES["grouped"])
    parts = [(0, 0, 200), (1, 39, 1)]
    before = cache.attend(parts, RULES["wide window"])
    slot = slots_of(cache.tables[0], 200)[30]
    cache.keys[in_pages(slot)][0, 3], cache.values[in_pages(slot)][0, 0] = torch.nan, torch.inf
    cache.queries[0][100, 5] = torch.inf
    after = cache.attend(parts, RULES["wide window"])
    assert torch.equal(after[1], before[1])
    spoilt = after[0].isnan().flatten(1).any(1).tolist()
    assert spoilt == [30 <= p < 30 + 150 for p in range(200)]
    assert torch.equal(after[0][:, 6:], before[0][:, 6:])  # of another KV head


@pytest.mark.usefixtures("variant")
def test_rows_of_no_sequence_are_zero() -> None:
    numbers = torch.randn(1, 4, 1, 8)
    row, count, blocks = (torch.tensor(v, dtype=torch.int32) for v in ([1, 3], [1, 0], [[0], [0]]))
    out = paged_attention(
        torch.randn(4, 2, 8), numbers, numbers, Sequences(row, count, count, blocks, 4), RULES["plain"]
    )
    assert out[[0, 2, 3]].eq(0).all()
    assert out[1].ne(0).all()
    none = torch.zeros(0, dtype=torch.int32)
    nothing = Sequences(none, none, none, torch.zeros(0, 0, dtype=torch.int32), 4)
    assert paged_attention(torch.randn(2, 2, 8), numbers, numbers, nothing, RULES["plain"]).eq(0).all()


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.usefixtures("variant")
def test_write_is_its_twin_exactly(stored: torch.dtype) -> None:
    """The rows' order is free, heads may lie apart, and every number rounds to the nearest."""
    k = (torch.randn(3, 50, 21) * torch.logspace(-9, 5.5, 50)[None, :, None]).transpose(0, 1)
    v = torch.randn(50, 3, 40)[..., 2:15]
    k[3], v[4, 1] = 0.0, torch.tensor([1e-45, -1e-40, 6e-8, 3e-8, 2.98e-8, 65519.0, -65520.0, *[0.0] * 6])
    slots = torch.randperm(60)[:50]
    native_cache, twin_cache = (cache_of(60, 3, 21, 13, stored) for _ in range(2))
    write_cache(k, v, slots, *native_cache[:2], scales=native_cache[2])
    write_cache_torch(k, v, slots, *twin_cache[:2], scales=twin_cache[2])
    for got, want in zip(tensors(native_cache), tensors(twin_cache), strict=True):
        assert torch.equal(got[in_pages(slots)], want[in_pages(slots)])


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.usefixtures("variant")
def test_what_is_not_a_number_is_stored_as_such(stored: torch.dtype) -> None:
    k = torch.randn(3, 2, 9)
    k[0, 1, 4], k[1, 0, 0], k[2, 1, 8] = torch.nan, torch.inf, -torch.inf
    keys, values, scales = cache_of(3, 2, 9, 9, stored)
    write_cache(k, k, torch.arange(3), keys, values, scales=scales)
    for stored_as, scale in zip((keys, values), scales or (None, None), strict=True):
        finite = read_cache(stored_as, torch.arange(3), scale).isfinite().all(-1)
        assert finite.tolist() == [[True, False], [False, True], [True, False]]


@pytest.mark.usefixtures("variant")
def test_a_finite_number_beyond_float16_is_stored_as_its_largest() -> None:
    k = torch.tensor([65504.0, 65519.9, 65520.0, 1e30, -65520.0, -3e38, torch.inf, -torch.inf, torch.nan])[None, None]
    keys, values, _ = cache_of(1, 1, 9, 9, torch.float16)
    write_cache(k, k, torch.arange(1), keys, values)
    want = torch.tensor([65504.0] * 4 + [-65504.0] * 2 + [torch.inf, -torch.inf, torch.nan]).half()
    for stored in (keys, values):
        torch.testing.assert_close(stored[0, 0, 0], want, rtol=0, atol=0, equal_nan=True)


def test_int8_is_within_half_a_step() -> None:
    k = torch.randn(20, 3, 64)
    keys, values, scales = cache_of(20, 3, 64, 64, torch.int8)
    write_cache(k, k, torch.arange(20), keys, values, scales=scales)
    assert scales is not None
    error = (read_cache(keys, torch.arange(20), scales[0]) - k).abs()
    assert (error <= scales[0][0, :20, :, None] * 0.5001).all()


def cache_of(
    slots: int, heads: int, dim: int, value_dim: int, stored: torch.dtype
) -> tuple[Tensor, Tensor, Scales | None]:
    """A cache of nonsense, its pages some way apart."""
    fill, pages = 99 if stored == torch.int8 else torch.nan, -(-slots // PAGE)
    keys, values = (torch.full((pages, PAGE + 2, heads, n), fill, dtype=stored)[:, :PAGE] for n in (dim, value_dim))
    scales = tuple(torch.full((pages, PAGE + 1, heads), torch.nan)[:, :PAGE] for _ in range(2))
    return keys, values, (scales[0], scales[1]) if stored == torch.int8 else None


def in_pages(slots: Tensor) -> tuple[Tensor, Tensor]:
    """For indexing a cache."""
    return slots // PAGE, slots % PAGE


def tensors(cache: tuple[Tensor, Tensor, Scales | None]) -> list[Tensor]:
    return [*cache[:2], *(cache[2] or ())]
