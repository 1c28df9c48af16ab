"""Paged KV blocks: who holds which, and which computed ones can be used again.

Every block is in exactly one state: held (reference count above 0), cached (count 0, content still findable by its
hash, evicted least recently used first), or empty. Knows block numbers and hashes; neither requests nor tensors.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence


class BlockManager:
    """Hands out the blocks ``0 .. num_blocks`` of ``block_size`` positions each."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._ref_counts = [0] * num_blocks
        self._empty = list(range(num_blocks - 1, -1, -1))
        self._evictable: OrderedDict[int, None] = OrderedDict()
        self._block_of: dict[bytes, int] = {}
        self._hash_of: dict[int, bytes] = {}

    @property
    def num_free(self) -> int:
        """Blocks that can be handed out now, cached ones included."""
        return len(self._empty) + len(self._evictable)

    def blocks_for(self, num_tokens: int) -> int:
        """How many blocks hold ``num_tokens`` positions."""
        return -(-num_tokens // self.block_size)

    def allocate(self, count: int) -> list[int]:
        """Hold ``count`` blocks of unspecified content, at most ``num_free``; empty ones are taken first."""
        assert 0 <= count <= self.num_free
        blocks = [self._empty.pop() if self._empty else self._evict() for _ in range(count)]
        for block in blocks:
            self._ref_counts[block] = 1
        return blocks

    def acquire(self, blocks: Iterable[int]) -> None:
        """Hold blocks that are held by others already, or cached."""
        for block in blocks:
            self._evictable.pop(block, None)
            self._ref_counts[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """Give up one hold on each block of a table. The end of a table is evicted before its beginning."""
        for block in reversed(blocks):
            assert self._ref_counts[block] > 0
            self._ref_counts[block] -= 1
            if self._ref_counts[block] == 0:
                if block in self._hash_of:
                    self._evictable[block] = None
                else:
                    self._empty.append(block)

    def publish(self, block: int, block_hash: bytes) -> None:
        """Make a held, fully computed block findable. The first block of a given content stays the findable one."""
        assert self._ref_counts[block] > 0
        if block_hash not in self._block_of and block not in self._hash_of:
            self._block_of[block_hash] = block
            self._hash_of[block] = block_hash

    def lookup(self, hashes: Iterable[bytes]) -> list[int]:
        """The blocks of the longest known beginning of a chain of hashes; they are not held yet."""
        found = []
        for block_hash in hashes:
            block = self._block_of.get(block_hash)
            if block is None:
                break
            found.append(block)
        return found

    def check_integrity(self, tables: Iterable[Sequence[int]]) -> None:
        """Raise AssertionError unless ``tables`` are all there is and every block is in exactly one state."""
        held = Counter(block for table in tables for block in table)
        assert [held[b] for b in range(self.num_blocks)] == self._ref_counts, "reference counts match the tables"
        free = [*self._empty, *self._evictable]
        assert len(free) == len(set(free)), "no block is free twice"
        assert set(free) | set(held) == set(range(self.num_blocks)), "no block is lost"
        assert not set(free) & set(held), "no block is both free and held"
        assert {b: h for h, b in self._block_of.items()} == self._hash_of, "hashes and blocks match one to one"
        assert not set(self._empty) & set(self._hash_of), "an empty block has no hash"
        assert set(self._evictable) <= set(self._hash_of), "a cached block has a hash"

    def _evict(self) -> int:
        block, _ = self._evictable.popitem(last=False)
        del self._block_of[self._hash_of.pop(block)]
        return block


def hash_seed(*parts: str) -> bytes:
    """The parent hash of a first block, from everything that its KV depends on besides tokens."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{len(part)}:{part}".encode())
    return digest.digest()


def extend_hashes(
    hashes: list[bytes],
    token_ids: Sequence[int],
    block_size: int,
    seed: bytes,
    switch: tuple[int, bytes] | None = None,
) -> None:
    """Append to ``hashes`` those of all full blocks of ``token_ids`` that it lacks; each covers all before it.

    With a ``switch`` (position, seed), the block that holds the position and those after it depend on its seed too.
    """
    for start in range(len(hashes) * block_size, len(token_ids) - block_size + 1, block_size):
        parent = hashes[-1] if hashes else seed
        if switch is not None and start <= switch[0] < start + block_size:
            parent += switch[1]
        tokens = array("q", token_ids[start : start + block_size])
        hashes.append(hashlib.sha256(parent + tokens.tobytes()).digest())
