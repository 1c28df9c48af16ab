"""Paged blocks: states, reference counts, eviction order, hashes."""

from __future__ import annotations

import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from server.engine.block_manager import BlockManager, extend_hashes, hash_seed

SEED = hash_seed("base", "", "")


def chain(token_ids: list[int], block_size: int = 2, seed: bytes = SEED) -> list[bytes]:
    hashes: list[bytes] = []
    extend_hashes(hashes, token_ids, block_size, seed)
    return hashes


def test_allocates_every_block_once() -> None:
    blocks = BlockManager(5, 4)
    held = blocks.allocate(5)
    assert sorted(held) == [0, 1, 2, 3, 4]
    assert blocks.num_free == 0
    blocks.check_integrity([held])
    blocks.release(held)
    assert blocks.num_free == 5
    blocks.check_integrity([])


def test_blocks_that_were_used_are_used_again_before_others() -> None:
    """Blocks take memory when they are first written."""
    blocks = BlockManager(100, 4)
    first, second = blocks.allocate(5), blocks.allocate(3)
    blocks.release(first)
    blocks.release(second)
    for count in (2, 8, 5):
        again = blocks.allocate(count)
        assert set(again) <= {*first, *second}
        blocks.release(again)


@pytest.mark.parametrize(("tokens", "blocks"), [(0, 0), (1, 1), (4, 1), (5, 2)])
def test_blocks_for(tokens: int, blocks: int) -> None:
    assert BlockManager(5, 4).blocks_for(tokens) == blocks


def test_shared_block_is_free_after_its_last_holder() -> None:
    blocks = BlockManager(2, 4)
    held = blocks.allocate(1)
    blocks.acquire(held)
    blocks.release(held)
    assert blocks.num_free == 1
    blocks.check_integrity([held])
    blocks.release(held)
    assert blocks.num_free == 2


def test_lookup_finds_the_longest_known_beginning() -> None:
    blocks = BlockManager(4, 2)
    hashes = chain([1, 2, 3, 4, 5, 6])
    held = blocks.allocate(3)
    blocks.publish(held[0], hashes[0])
    blocks.publish(held[2], hashes[2])
    assert blocks.lookup(hashes) == held[:1]
    blocks.publish(held[1], hashes[1])
    assert blocks.lookup(hashes) == held
    assert blocks.lookup(chain([1, 2, 9, 4, 5, 6])) == held[:1]


def test_released_blocks_stay_findable_until_they_are_needed() -> None:
    blocks = BlockManager(3, 2)
    hashes = chain([1, 2, 3, 4])
    held = blocks.allocate(2)
    for block, block_hash in zip(held, hashes, strict=True):
        blocks.publish(block, block_hash)
    blocks.release(held)
    assert blocks.num_free == 3
    assert blocks.lookup(hashes) == held
    taken = blocks.allocate(1)
    assert not set(taken) & set(held), "an empty block is taken before a cached one"
    taken += blocks.allocate(1)
    assert blocks.lookup(hashes) == held[:1], "the end of a table goes before its beginning"
    blocks.check_integrity([taken])


def test_least_recently_used_goes_first() -> None:
    blocks = BlockManager(2, 2)
    first, second = blocks.allocate(2)
    blocks.publish(first, b"first")
    blocks.publish(second, b"second")
    blocks.release([first])
    blocks.release([second])
    blocks.acquire([first])
    blocks.release([first])
    assert blocks.allocate(1) == [second]
    assert blocks.lookup([b"first"]) == [first]


def test_first_block_of_a_content_stays_the_findable_one() -> None:
    blocks = BlockManager(2, 2)
    held = blocks.allocate(2)
    for block in held:
        blocks.publish(block, b"same")
    assert blocks.lookup([b"same"]) == held[:1]
    blocks.release(held)
    blocks.check_integrity([])


def test_hashes_cover_all_before_them() -> None:
    one, other = chain([1, 2, 3, 4, 5]), chain([9, 2, 3, 4])
    assert len(one) == 2, "full blocks only"
    assert one[1] != other[1]
    assert chain([1, 2, 3, 4]) == one


def test_hashes_can_be_extended() -> None:
    hashes = chain([1, 2, 3])
    extend_hashes(hashes, [1, 2, 3, 4, 5, 6], 2, SEED)
    assert hashes == chain([1, 2, 3, 4, 5, 6])


def test_hash_seed_keeps_its_parts_apart() -> None:
    seeds = [hash_seed("b", "a", ""), hash_seed("b", "", "a"), hash_seed("ba", "", ""), hash_seed("b", "a1", "")]
    assert len({chain([1, 2], seed=seed)[0] for seed in seeds}) == len(seeds)


def test_integrity_check_sees_a_leak() -> None:
    blocks = BlockManager(4, 2)
    held = blocks.allocate(2)
    with pytest.raises(AssertionError):
        blocks.check_integrity([held[:1]])
    with pytest.raises(AssertionError):
        blocks.check_integrity([held, held])


class BlockMachine(RuleBasedStateMachine):
    """Random tables of random content: counts always match, and a found block has the content looked for."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = BlockManager(12, 2)
        self.tables: list[list[int]] = []
        self.content: dict[int, bytes] = {}

    @rule(count=st.integers(0, 5))
    def allocate(self, count: int) -> None:
        if count <= self.blocks.num_free:
            table = self.blocks.allocate(count)
            for block in table:
                self.content[block] = b"?"
            self.tables.append(table)

    @precondition(lambda self: self.tables)
    @rule(data=st.data(), content=st.sampled_from([b"a", b"b", b"c", b"d"]))
    def publish(self, data: st.DataObject, content: bytes) -> None:
        table = data.draw(st.sampled_from(self.tables))
        for block in table[:1]:
            if self.content[block] == b"?":
                self.content[block] = content
                self.blocks.publish(block, content)

    @rule(content=st.sampled_from([b"a", b"b", b"c", b"d"]))
    def use_cached(self, content: bytes) -> None:
        found = self.blocks.lookup([content])
        assert all(self.content[block] == content for block in found)
        self.blocks.acquire(found)
        self.tables.append(found)

    @precondition(lambda self: self.tables)
    @rule(seed=st.integers(0, 99))
    def release(self, seed: int) -> None:
        self.blocks.release(self.tables.pop(random.Random(seed).randrange(len(self.tables))))

    @invariant()
    def is_sound(self) -> None:
        self.blocks.check_integrity(self.tables)


TestBlockMachine = BlockMachine.TestCase
TestBlockMachine.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
