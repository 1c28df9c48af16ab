from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.adapter_key import AdapterKey
from server.api.shadow import Answered, Shadows, agreement, seconds_per_token
from server.catalog.canary_figures import CanaryFigures
from server.catalog.lease import Lease
from server.catalog.registry import Registry
from server.catalog.traffic import Shadow, Traffic
from server.catalog.versions import AdapterVersion, NameRecord, VersionHistory
from server.engine.messages import EngineStats
from server.errors import UnknownModelError
from server.metrics import Metrics

ids = st.lists(st.integers(0, 3), min_size=1, max_size=8)


def answered(*rows: Sequence[int], seconds: float = 1.0) -> list[Answered]:
    return [Answered(row, seconds) for row in rows]


@given(ids, ids)
def test_agreement(one: list[int], other: list[int]) -> None:
    found = agreement(answered(one), answered(other))
    assert found == agreement(answered(other), answered(one))
    assert (found == 1) == (one == other)
    assert (found == 0) == (one[0] != other[0])
    assert 0 <= found <= 1


def test_agreement_ends_with_the_first_difference() -> None:
    assert agreement(answered([1, 2, 3, 4]), answered([1, 2, 9, 4])) == 0.5
    assert agreement(answered([1, 2]), answered([1, 2, 3, 4])) == 0.5
    assert agreement(answered([1, 2], [5]), answered([1, 2], [6])) == pytest.approx(2 / 3)


def test_time_per_token() -> None:
    assert seconds_per_token(answered([1, 2], [3, 4], seconds=2.0)) == 1.0
    assert seconds_per_token(answered([])) == 1.0


class Engine:
    """What is looked at of one."""

    def __init__(self) -> None:
        self.stats = EngineStats(kv_blocks_total=100)

    def set(self, **fields: int) -> None:
        self.stats = msgspec.structs.replace(self.stats, **fields)


class Harness:
    """Shadows over a name whose version 2 is one; copies end when told."""

    def __init__(self, seats: int = 8) -> None:
        self.registry = Registry("base")
        self.key = AdapterKey("a", 2, "d")
        self.share(1.0)
        self.engine = Engine()
        self.figures = CanaryFigures(self.registry)
        self.shadows = Shadows(self.registry, self.engine, self.figures, Metrics("base"), seats=seats)
        self.end = asyncio.Event()
        self.held: list[Lease] = []

    def share(self, weight: float) -> None:
        shadow = Shadow(version=2, weight=weight, began=0.0)
        record = NameRecord(last=2, live=1, candidates={2}, traffic=Traffic(salt="s", shadow=shadow))
        versions = [
            AdapterVersion(
                key=AdapterKey("a", number, "d"),
                path=Path("a"),
                kind="lora",
                nbytes=1,
                num_virtual_tokens=0,
                created=0.0,
            )
            for number in (1, 2)
        ]
        self.registry.adopt("a", VersionHistory(record, versions))

    def begin(self, sequences: int = 1, active: int = 0) -> None:
        rows = answered(*[[1, 2]] * sequences)

        async def answer(lease: Lease) -> list[Answered]:
            self.held.append(lease)
            await self.end.wait()
            return rows

        self.shadows.begin(self.key, rows, answer, comparable=True, active=active)

    @property
    def counts(self) -> tuple[int, int, int]:
        """Copies that were answered, dropped, and failed."""
        seen = self.figures.of("a", 2)
        return seen.copies, seen.dropped, seen.failed_copies


async def test_a_copy_holds_its_version_and_is_compared() -> None:
    harness = Harness()
    harness.begin()
    async with asyncio.timeout(10):
        while not harness.held:
            await asyncio.sleep(0.005)
        assert harness.held[0].key == harness.key
        waiting = asyncio.create_task(harness.registry.unused(harness.key))
        await asyncio.sleep(0)
        assert not waiting.done()
        harness.end.set()
        await waiting
    assert harness.counts == (1, 0, 0)
    assert harness.figures.agreement("a", 2, 60).exact_share == 1
    assert harness.shadows.sequences == 0


@pytest.mark.parametrize(
    ("sequences", "active", "stats"),
    [(3, 0, {}), (1, 8, {}), (1, 0, {"num_waiting": 1}), (1, 0, {"kv_blocks_used": 51})],
)
async def test_without_room_a_copy_is_dropped(sequences: int, active: int, stats: dict[str, int]) -> None:
    harness = Harness()
    harness.engine.set(**stats)
    harness.begin(sequences, active)
    assert harness.counts == (0, 1, 0)
    assert harness.shadows.sequences == 0
    harness.engine.set(num_waiting=0, kv_blocks_used=50)
    harness.begin(2, 6)
    assert harness.shadows.sequences == 2
    harness.begin(1, 0)
    assert harness.counts == (0, 2, 0), "a quarter of the seats is taken"
    await harness.shadows.close()


async def test_copies_give_way_the_youngest_first() -> None:
    harness = Harness(seats=16)
    for _ in range(3):
        harness.begin()
    await asyncio.sleep(0)
    harness.shadows.give_way(13)
    await asyncio.sleep(0.01)
    assert (harness.shadows.sequences, harness.counts) == (3, (0, 0, 0))
    harness.shadows.give_way(15)
    await asyncio.sleep(0.01)
    assert (harness.shadows.sequences, harness.counts) == (1, (0, 2, 0))
    harness.engine.set(kv_blocks_used=95)
    harness.shadows.give_way(1)
    await asyncio.sleep(0.01)
    assert (harness.shadows.sequences, harness.counts) == (0, (0, 3, 0))


async def test_a_copy_that_fails_is_counted() -> None:
    harness = Harness()

    async def refuse(lease: Lease) -> list[Answered]:
        raise UnknownModelError("it was removed")

    harness.shadows.begin(harness.key, answered([1]), refuse, comparable=True, active=0)
    async with asyncio.timeout(10):
        while harness.shadows.sequences:
            await asyncio.sleep(0.005)
    assert harness.counts == (0, 0, 1)


async def test_whose_requests_are_copied() -> None:
    harness = Harness()

    def chosen(model: str) -> AdapterKey | None:
        with harness.registry.lease(model) as lease:
            return harness.shadows.chosen(lease)

    assert chosen("a") == chosen("base:a") == harness.key
    assert chosen("a@1") is chosen("a@2") is chosen("base") is None
    harness.share(0.25)
    copies = sum(chosen("a") is not None for _ in range(2000))
    assert abs(copies - 500) < 100
    harness.registry.failed(harness.key, "gone")
    assert not any(chosen("a") for _ in range(50))
