from __future__ import annotations

import torch

from adapters.ops import Adapter, LowRank, PromptEmbeds
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
