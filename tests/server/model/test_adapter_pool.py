from __future__ import annotations

import gc
import weakref
from collections.abc import Mapping

import pytest
import torch

from adapters.batch.grouped import Groups
from adapters.batch.rows import RowSegment
from adapters.ops import Adapter, Bias, LowRank, PromptEmbeds
from adapters.ops.products import BlockLowRank
from hotkernels import native
from server.adapter_key import AdapterKey
from server.model.adapter_pool import AdapterPool

KEYS = [AdapterKey(f"a{i}", 1, str(i)) for i in range(6)]


def blocks() -> BlockLowRank:
    return BlockLowRank(torch.randn(1, 8, 4), torch.randn(1, 4, 8))


def make_pool() -> AdapterPool:
    pool = AdapterPool()
    for key in KEYS:
        pool.add(key, Adapter("gralora", {"q": (blocks(),)}))
    return pool


def members(pool: AdapterPool, *active: AdapterKey) -> set[object]:
    (group,) = pool.groups(frozenset(active))["q"].after
    return set(group.members)


def test_a_stack_is_kept_while_it_covers_the_batch() -> None:
    pool = make_pool()
    first = pool.groups(frozenset(KEYS[:4]))
    assert pool.groups(frozenset(KEYS[:3])) is first
    assert members(pool, *KEYS[:2]) == set(KEYS[:4])
    assert members(pool, KEYS[0]) == {KEYS[0]}, "a stack mostly idle is dropped"
    assert members(pool, KEYS[0], KEYS[5]) == {KEYS[0], KEYS[5]}


def test_stacks_hold_the_adapters_own_numbers() -> None:
    pool = make_pool()
    (group,) = pool.groups(frozenset(KEYS[:3]))["q"].after
    op = pool[KEYS[1]].ops["q"][0]
    assert isinstance(op, BlockLowRank)
    assert isinstance(group.op, BlockLowRank)
    at = group.members.index(KEYS[1])
    assert torch.equal(group.op.a[at], op.a)
    assert torch.equal(group.op.b[at], op.b)


def test_a_removed_adapter_leaves_the_stack() -> None:
    pool = make_pool()
    pool.groups(frozenset(KEYS[:2]))
    pool.remove(KEYS[0])
    assert members(pool, KEYS[1]) == {KEYS[1]}
    assert len(pool) == len(KEYS) - 1


def actors(groups: Mapping[str, Groups]) -> dict[str, list[object]]:
    """Who acts at each module, as often as they do."""
    return {module: [m for group in found.after for m in group.members] for module, found in groups.items()}


def test_a_step_copies_a_part_and_all_act_at_once() -> None:
    modules = [f"layer{i}" for i in range(8)]
    pool = AdapterPool(step_bytes=2 * 2 * 8 * 4 * 4)  # two members at a module
    for key in KEYS:
        pool.add(key, Adapter("gralora", {module: (blocks(),) for module in modules}))
    for active in (KEYS[:2], KEYS[:2], KEYS[:3], KEYS[1:3], KEYS[3:], KEYS[:1], KEYS):
        groups = pool.groups(frozenset(active))
        for module, acting in actors(groups).items():
            assert set(active) <= set(acting), module
            assert len(acting) == len(set(acting)), "nobody acts twice"
    for _ in modules:
        groups = pool.groups(frozenset(KEYS))
        stacked = [module for module in modules if len(groups[module].after) == 1]
        assert stacked
    assert stacked == modules, "in the end all are in one stack"


def test_a_removed_adapter_leaves_unfinished_stacks_too() -> None:
    pool = AdapterPool(step_bytes=1)
    for key in KEYS:
        pool.add(key, Adapter("gralora", {module: (blocks(),) for module in ("q", "v", "o")}))
    pool.groups(frozenset(KEYS))
    pool.groups(frozenset(KEYS[1:3]))
    gone = weakref.ref(pool[KEYS[0]])
    pool.remove(KEYS[0])
    assert all(KEYS[0] not in acting for acting in actors(pool.groups(frozenset(KEYS[1:3]))).values())
    gc.collect()
    assert gone() is None


def test_adapters_without_ops_need_no_stack() -> None:
    pool = AdapterPool()
    pool.add(KEYS[0], Adapter("prompt", prompt=PromptEmbeds(torch.randn(3, 8))))
    assert pool.groups(frozenset(KEYS[:1])) == {}
    assert pool.nbytes == 3 * 8 * 4


def test_bytes_follow_what_is_resident() -> None:
    pool = make_pool()
    each = pool[KEYS[0]].nbytes
    assert pool.nbytes == len(KEYS) * each
    pool.remove(KEYS[2])
    assert pool.nbytes == (len(KEYS) - 1) * each


@pytest.mark.skipif(native.variant() == native.TORCH, reason="torch runs low-rank updates in groups")
def test_low_rank_updates_need_no_stack() -> None:
    pool = AdapterPool()
    low, bias = LowRank(torch.randn(8, 4), torch.randn(4, 8)), Bias(torch.randn(8))
    pool.add(KEYS[0], Adapter("lora", {"q": (low, bias), "v": (low,)}))
    pool.add(KEYS[1], Adapter("gralora", {"q": (blocks(),)}))
    assert actors(pool.groups(frozenset(KEYS[:2]))) == {"q": [KEYS[0], KEYS[1]]}
    updates = pool.low_rank([RowSegment(KEYS[1], 0, 2), RowSegment(KEYS[0], 2, 5)])
    assert updates is not None
    ((table, *rows),) = updates.rows.segments
    assert rows == [2, 5]
    assert [table.acts_at(updates.places.number(module)) for module in ("q", "v", "o")] == [True, True, False]
    assert pool.low_rank([RowSegment(KEYS[1], 0, 2)]) is None


@pytest.mark.skipif(native.variant() == native.TORCH, reason="torch runs row ops in groups")
def test_row_ops_of_linear_maps_need_no_stack() -> None:
    pool = AdapterPool(linears={"q"})
    low, bias = LowRank(torch.randn(8, 4), torch.randn(4, 8)), Bias(torch.randn(8))
    pool.add(KEYS[0], Adapter("lora", {"q": (low, bias), "norm": (bias,)}))
    pool.add(KEYS[1], Adapter("gralora", {"q": (blocks(),)}))
    assert actors(pool.groups(frozenset(KEYS[:2]))) == {"norm": [KEYS[0]], "q": [KEYS[1]]}
    changes = pool.row_ops([RowSegment(KEYS[1], 0, 2), RowSegment(KEYS[0], 2, 5)])
    assert changes is not None
    ((table, *rows),) = changes.after.segments
    assert rows == [2, 5]
    assert table.mask == 1 << changes.places.number("q")
    assert changes.before.segments == []
    assert pool.row_ops([RowSegment(KEYS[1], 0, 2)]) is None


def test_the_widest_active_adapter_says_how_many_logits_there_are() -> None:
    pool = AdapterPool()
    for key, count in zip(KEYS, (None, 12, 9), strict=False):
        pool.add(key, Adapter("lora", {"head": (blocks(),)}, num_logits=count))
    counts = [pool.num_logits(frozenset(active)) for active in ((), KEYS[:1], KEYS[1:3], KEYS[2:3])]
    assert counts == [0, 0, 12, 9]
