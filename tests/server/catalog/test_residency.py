"""Which versions are in memory, and who has to wait for whom: with an engine that answers when it is told to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from server.adapter_key import AdapterKey
from server.catalog import residency as under_test
from server.catalog.lease import Lease
from server.catalog.memory_ledger import Budget
from server.catalog.places import Stage, Unkept
from server.catalog.registry import Registry
from server.catalog.residency import Residency
from server.catalog.versions import VersionState
from server.errors import AdapterFailedError, BudgetError, EngineUnavailableError, NoRoomError, UnknownModelError
from tests.server.catalog.toy_engine import ToyEngine, register

SIX = dict.fromkeys("abcdef", 10)


@dataclass
class Scene:
    """Names that are all only stored, and what is in memory of them."""

    weights: dict[str, int] = field(default_factory=lambda: dict(SIX))
    max_bytes: int = 0
    max_count: int = 0
    engine_bytes: int = 0
    by_hand: bool = False
    rules: dict[str, Unkept] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.registry = Registry("base")
        self.engine = ToyEngine(self.weights, self.engine_bytes or self.max_bytes, by_hand=self.by_hand)
        budget = Budget(self.max_bytes, self.max_count)
        self.residency = Residency(self.engine, self.registry, budget, rule=lambda name: self.rules.get(name, Unkept()))
        self.keys = {name: register(self.registry, name, nbytes) for name, nbytes in self.weights.items()}

    @property
    def resident(self) -> str:
        return "".join(sorted(key.name for key in self.engine.resident))

    @asynccontextmanager
    async def using(self, model: str) -> AsyncIterator[Lease]:
        """A request that runs."""
        with self.registry.lease(model) as lease:
            await self.residency.ensure(lease)
            assert lease.key is None or lease.key in self.engine.resident
            yield lease

    async def use(self, *models: str) -> None:
        for model in models:
            async with self.using(model):
                pass

    def hold(self, model: str) -> tuple[Lease, asyncio.Task[None]]:
        """A request that has come, and waits."""
        lease = self.registry.lease(model)
        self.residency.want(lease)
        return lease, asyncio.create_task(self.residency.ensure(lease))

    async def answer(self, *names: str) -> None:
        """The engine answers what it was asked about ``names``."""
        for name in names:
            await until(lambda name=name: self.keys[name] in self.engine.waiting)  # type: ignore[misc]
            self.engine.waiting[self.keys[name]].set_result(None)
            await turns()


async def turns() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0)


@pytest.fixture
async def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(under_test, "PATIENCE_SECONDS", 0.01)


async def test_the_least_recently_used_leaves() -> None:
    scene = Scene(max_count=3)
    await scene.use("a", "b", "c", "a", "d")
    assert scene.resident == "acd"
    await scene.use("c", "e")
    assert scene.resident == "cde"
    assert scene.residency.stage(scene.keys["c"]) is Stage.RESIDENT
    assert scene.residency.stage(scene.keys["a"]) is None
    scene.residency.check_integrity()


async def test_bytes_are_counted_and_as_many_leave_as_must() -> None:
    scene = Scene(weights={"a": 10, "b": 10, "c": 10, "large": 25}, max_bytes=35)
    await scene.use("a", "b", "c", "large")
    assert scene.resident == "clarge"
    assert (scene.residency.nbytes, scene.residency.num_resident) == (35, 2)
    await scene.use("a")
    assert scene.resident == "alarge"


async def test_many_requests_for_one_cold_version_load_it_once() -> None:
    scene = Scene(by_hand=True)
    waiting = [scene.hold("a") for _ in range(5)]
    gone = waiting.pop()
    await turns()
    gone[1].cancel()  # a client that leaves cancels nothing for the others
    gone[0].release()
    await scene.answer("a")
    await asyncio.gather(*(task for _, task in waiting))
    assert scene.engine.loads == [scene.keys["a"]]
    for lease, _ in waiting:
        lease.release()
    scene.residency.check_integrity()


async def test_what_nobody_waits_for_any_more_is_not_loaded() -> None:
    scene = Scene(max_count=1, by_hand=True)
    used, task = scene.hold("a")
    await scene.answer("a")
    await task
    left, waiting = scene.hold("b")
    later, last = scene.hold("c")
    await turns()
    waiting.cancel()
    left.release()
    used.release()
    await scene.answer("a", "c")
    await last
    assert [key.name for key in scene.engine.loads] == ["a", "c"]
    later.release()


async def test_what_is_used_stays_and_others_wait_for_its_end() -> None:
    scene = Scene(max_count=1)
    async with scene.using("a"):
        lease, task = scene.hold("b")
        await turns()
        assert (scene.resident, task.done()) == ("a", False)
    await task
    assert scene.resident == "b"
    lease.release()


@pytest.mark.usefixtures("impatient")
async def test_one_that_is_always_used_makes_room_in_the_end() -> None:
    scene = Scene(max_count=1)
    first, task = scene.hold("a")
    await task
    cold, waiting = scene.hold("b")
    second, task = scene.hold("a")
    await task  # at once: it is there
    await asyncio.sleep(0.05)
    late, last = scene.hold("a")  # now "b" comes first
    first.release()
    await turns()
    assert not waiting.done(), "the second request still runs"
    second.release()
    await waiting
    assert not last.done()
    cold.release()
    await last
    assert scene.engine.loads == [scene.keys[name] for name in "aba"]
    late.release()
    scene.residency.check_integrity()


@pytest.mark.usefixtures("impatient")
async def test_those_held_back_go_on_when_the_one_that_waited_has_left() -> None:
    scene = Scene(max_count=1)
    async with scene.using("a"):
        cold, waiting = scene.hold("b")
        await asyncio.sleep(0.05)
        late, last = scene.hold("a")
        await turns()
        assert not last.done()
        waiting.cancel()
        cold.release()
        await last
        late.release()
    assert scene.engine.loads == [scene.keys["a"]]


async def test_a_flood_of_distinct_cold_versions_makes_progress() -> None:
    names = [f"n{i}" for i in range(60)]
    scene = Scene(weights=dict.fromkeys(names, 10), max_bytes=35)
    ended: list[str] = []

    async def request(name: str) -> None:
        async with scene.using(name):
            await turns()
            scene.residency.check_integrity()
        ended.append(name)

    async with asyncio.timeout(10):
        await asyncio.gather(*(request(name) for name in names for _ in range(2)))
    assert ended[::2] == names, "in the order in which they came"
    assert len(scene.engine.loads) == len(names)


async def test_a_failed_load_fails_its_requests_alone_and_says_why() -> None:
    scene = Scene(by_hand=True)
    del scene.weights["b"]
    (sound, fine), (broken, failing), (same, too) = scene.hold("a"), scene.hold("b"), scene.hold("b")
    await scene.answer("a", "b")
    await fine
    for task in (failing, too):
        with pytest.raises(AdapterFailedError, match="b@1 cannot be loaded: it is broken"):
            await task
    assert scene.registry.state(scene.keys["b"]) is VersionState.FAILED
    for lease in (sound, broken, same):
        lease.release()
    scene.residency.check_integrity()


async def test_pinned_versions_stay_and_what_can_never_fit_is_refused() -> None:
    scene = Scene(weights={**SIX, "large": 25}, max_bytes=30, rules={"a": Unkept(pinned=True)})
    await scene.use("a", "b", "c", "d")
    assert scene.resident == "acd"
    with pytest.raises(NoRoomError, match=r"large@1 takes 0.0 MB .* pinned"):
        await scene.use("large")
    assert scene.resident == "acd", "nobody had to leave for it"
    scene.rules.clear()
    scene.residency.rule_changed("a")
    await scene.use("large")
    assert scene.resident == "large"
    scene = Scene(weights={"huge": 31}, max_bytes=30)
    with pytest.raises(BudgetError, match="--max-adapter-gb") as caught:
        await scene.use("huge")
    assert not isinstance(caught.value, NoRoomError)


async def test_a_pin_brings_the_live_version_into_memory() -> None:
    scene = Scene(max_count=2)
    await scene.use("b", "c")
    scene.rules["a"] = Unkept(pinned=True)
    scene.residency.rule_changed("a")
    await scene.residency.settle()
    assert scene.resident == "ac"


async def test_an_idle_version_leaves_after_its_time_to_live() -> None:
    scene = Scene(rules={"a": Unkept(idle_ttl_seconds=0.05), "b": Unkept(pinned=True, idle_ttl_seconds=0.01)})
    async with scene.using("a"):
        await scene.use("b")
        await asyncio.sleep(0.1)
        assert scene.resident == "ab", "one is used, the other pinned"
    await until(lambda: scene.resident == "b")
    await scene.use("a", "c")
    scene.rules["c"] = Unkept(idle_ttl_seconds=0.01)
    scene.residency.rule_changed("c")
    await until(lambda: scene.resident == "b")


async def test_the_engine_knows_better_what_a_package_takes() -> None:
    scene = Scene(weights=dict.fromkeys("abc", 10), max_bytes=30)
    await scene.use("a", "b")
    scene.weights["new"] = 15
    new = AdapterKey("new", 1, "new")
    loaded = await scene.residency.load(new, scene.registry.live("a").path.with_name("new"), nbytes=1)
    assert (loaded.nbytes, scene.resident) == (15, "bnew")
    scene.residency.check_integrity()


async def test_without_memory_idle_ones_leave_and_then_it_has_failed() -> None:
    scene = Scene(engine_bytes=25)  # less than was thought
    await scene.use("a", "b", "c")
    assert scene.resident == "bc"
    async with scene.using("b"), scene.using("c"):
        with pytest.raises(BudgetError, match="no room"):
            await scene.use("d")
    assert scene.resident == "bc"
    assert scene.registry.state(scene.keys["d"]) is VersionState.LIVE, "its package is not at fault"


async def test_removal_refuses_those_who_wait() -> None:
    scene = Scene(max_count=1, by_hand=True)
    used, task = scene.hold("a")
    await scene.answer("a")
    await task
    waiting, refused = scene.hold("b")
    await turns()
    await scene.residency.unload(scene.keys["b"], force=True)
    with pytest.raises(UnknownModelError, match="b@1 was removed"):
        await refused
    waiting.release()
    used.release()
    loading, refused = scene.hold("c")
    await scene.answer("a")
    await until(lambda: scene.keys["c"] in scene.engine.waiting)
    removal = asyncio.create_task(scene.residency.unload(scene.keys["c"], force=True))
    await scene.answer("c", "c")
    await removal
    with pytest.raises(UnknownModelError, match="c@1 was removed"):
        await refused
    loading.release()
    assert (scene.resident, scene.residency.num_resident) == ("", 0)
    scene.residency.check_integrity()


async def test_warming_follows_the_order_and_evicts_nobody() -> None:
    scene = Scene(max_count=4)
    await scene.use("f")
    scene.residency.warm(scene.keys[name] for name in "edcba")
    await scene.residency.settle()
    assert scene.resident == "cdef"
    assert [key.name for key in scene.engine.loads] == ["f", "e", "d", "c"]


async def test_after_a_restart_what_was_resident_comes_back_most_recent_first() -> None:
    scene = Scene(by_hand=True)
    for name in "abc":
        lease, task = scene.hold(name)
        await scene.answer(name)
        await task
        lease.release()
    waiting, task = scene.hold("d")
    await turns()
    await scene.engine.close()
    await turns()
    assert not task.done(), "it has sent nothing, so it waits for the next engine"
    with pytest.raises(EngineUnavailableError):
        await scene.use("e")
    scene.engine.loads.clear()
    await scene.engine.start()
    scene.residency.engine_started()
    await scene.answer("d", "c", "b", "a")
    await task
    assert [key.name for key in scene.engine.loads] == ["d", "c", "b", "a"]
    waiting.release()
    scene.residency.check_integrity()


async def test_a_request_that_held_its_version_asks_again_after_a_restart() -> None:
    scene = Scene()
    async with scene.using("a") as lease:
        await scene.engine.close()
        await scene.engine.start()
        scene.residency.engine_started()
        await scene.residency.ensure(lease)
        assert scene.resident == "a"


async def test_what_ends_two_engines_while_it_is_loaded_has_failed() -> None:
    scene = Scene(by_hand=True)
    (killer, failing), (other, fine) = scene.hold("a"), scene.hold("b")
    for _ in range(2):
        await until(lambda: scene.keys["a"] in scene.engine.waiting)
        await scene.engine.close()
        await turns()
        await scene.engine.start()
        scene.residency.engine_started()
    with pytest.raises(AdapterFailedError, match="ended while it was being loaded"):
        await failing
    await scene.answer("b")
    await fine
    for lease in (killer, other):
        lease.release()


async def test_without_another_engine_those_who_wait_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(under_test, "RESTART_SECONDS", 0.01)
    scene = Scene(by_hand=True)
    lease, task = scene.hold("a")
    await until(lambda: scene.keys["a"] in scene.engine.waiting)
    await scene.engine.close()
    with pytest.raises(EngineUnavailableError):
        await task
    lease.release()
