from __future__ import annotations

import gc
import weakref
from collections.abc import Mapping

import torch

from adapters.batch.grouped import Groups
from adapters.ops import Adapter, LowRank, PromptEmbeds
from hotkernels import native
from server.adapter_key import AdapterKey
from server.model.adapter_pool import AdapterPool

KEYS = [AdapterKey(f"a{i}", 1, str(i)) for i in range(6)]


def make_pool() -> AdapterPool:
    pool = AdapterPool()
    for key in KEYS:
        pool.add(key, Adapter("lora", {"q": (LowRank(torch.randn(8, 4), torch.randn(4, 8)),)}))
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
    with native.using(native.TORCH):  # native updates are not stacked
        (group,) = pool.groups(frozenset(KEYS[:3]))["q"].after
    op = pool[KEYS[1]].ops["q"][0]
    assert isinstance(op, LowRank)
    assert isinstance(group.op, LowRank)
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
        ops = {module: (LowRank(torch.randn(8, 4), torch.randn(4, 8)),) for module in modules}
        pool.add(key, Adapter("lora", ops))
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
        ops = {module: (LowRank(torch.randn(8, 4), torch.randn(4, 8)),) for module in ("q", "v", "o")}
        pool.add(key, Adapter("lora", ops))
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
