"""Any order of requests, ends, loads, failures, removals and restarts: what must hold in each state."""

from __future__ import annotations

import asyncio

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from adapters.errors import AdapterError
from server.adapter_key import AdapterKey
from server.catalog import residency as under_test
from server.catalog.lease import Lease
from server.catalog.memory_ledger import Budget
from server.catalog.places import Unkept
from server.catalog.registry import Registry
from server.catalog.residency import Residency
from server.errors import ServerError
from tests.server.catalog.toy_engine import ToyEngine, register

WEIGHTS = {"a": 10, "b": 10, "c": 15, "d": 20, "e": 5, "huge": 100}
MAX_BYTES, MAX_COUNT = 35, 3
BROKEN = "broken"
names = st.sampled_from([*WEIGHTS, BROKEN])


class Residencies(RuleBasedStateMachine):
    """An engine that answers at any time; requests that come, wait, run, end and leave at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.patience, under_test.PATIENCE_SECONDS = under_test.PATIENCE_SECONDS, 0.0
        self.loop = asyncio.new_event_loop()
        self.registry = Registry("base")
        self.engine = ToyEngine(WEIGHTS, MAX_BYTES, by_hand=True)
        self.engine.in_use = self.is_used
        self.pinned: set[str] = set()
        self.loop.run_until_complete(self._begin())
        self.requests: list[tuple[Lease, asyncio.Task[None]]] = []

    async def _begin(self) -> None:
        self.residency = Residency(
            self.engine, self.registry, Budget(MAX_BYTES, MAX_COUNT), rule=lambda name: Unkept(name in self.pinned)
        )
        # what is thought of "e" is too little, and "broken" cannot be loaded
        self.keys = {name: register(self.registry, name, 1 if name == "e" else WEIGHTS[name]) for name in WEIGHTS}
        self.keys[BROKEN] = register(self.registry, BROKEN, 10)

    def is_used(self, key: AdapterKey) -> bool:
        """Whether a request runs with ``key``."""
        mine = [task for lease, task in self.requests if lease.key == key and task.done()]
        return any(not task.cancelled() and task.exception() is None for task in mine)

    def turns(self, count: int = 12) -> None:
        async def some() -> None:
            for _ in range(count):
                await asyncio.sleep(0)

        self.loop.run_until_complete(some())

    @rule(name=names, turns=st.integers(0, 8))
    def ask(self, name: str, turns: int) -> None:
        async def come() -> None:
            lease = Lease(self.keys[name], lambda _: None)
            self.residency.want(lease)
            self.requests.append((lease, asyncio.ensure_future(self.residency.ensure(lease))))

        self.loop.run_until_complete(come())
        self.turns(turns)

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        """A request ends, or its client goes while it waits."""
        lease, task = self.requests.pop(data.draw(st.integers(0, len(self.requests) - 1)))
        if not task.done():
            task.cancel()
        elif not task.cancelled() and task.exception() is not None:
            assert isinstance(task.exception(), (ServerError, AdapterError))

        async def end() -> None:
            lease.release()

        self.loop.run_until_complete(end())
        self.turns()

    @precondition(lambda self: self.engine.waiting)
    @rule(data=st.data(), turns=st.integers(0, 8))
    def answer(self, data: st.DataObject, turns: int) -> None:
        key = data.draw(st.sampled_from(sorted(self.engine.waiting, key=str)))
        if not self.engine.waiting[key].done():
            self.engine.waiting[key].set_result(None)
        self.turns(turns)

    @rule(name=st.sampled_from(["a", "e"]))
    def pin(self, name: str) -> None:
        async def change() -> None:
            self.pinned.symmetric_difference_update({name})
            self.residency.rule_changed(name)

        self.loop.run_until_complete(change())
        self.turns()

    @rule(name=names)
    def remove(self, name: str) -> None:
        """By force: requests that run are ended."""
        ended = [(lease, task) for lease, task in self.requests if lease.key == self.keys[name] and task.done()]

        async def begin() -> None:
            for request in ended:
                self.requests.remove(request)
                request[0].release()
            self.removal = asyncio.ensure_future(self.residency.unload(self.keys[name], force=True))

        self.loop.run_until_complete(begin())
        self.turns()

    @rule()
    def restart(self) -> None:
        async def die_and_come_back() -> None:
            await self.engine.close()
            for _ in range(20):
                await asyncio.sleep(0)
            for request in [request for request in self.requests if request[1].done()]:
                self.requests.remove(request)
                request[0].release()  # what ran has ended; what waits has sent nothing, and goes on waiting
            await self.engine.start()
            self.residency.engine_started()

        self.loop.run_until_complete(die_and_come_back())
        self.turns()

    @invariant()
    def budget_and_places(self) -> None:
        self.residency.check_integrity()
        assert sum(self.engine.weigh.values()) <= MAX_BYTES
        assert len(self.engine.resident) <= MAX_COUNT

    @invariant()
    def what_is_used_is_resident(self) -> None:
        for key in self.keys.values():
            assert key in self.engine.resident or not self.is_used(key)

    def teardown(self) -> None:
        """When the engine answers everything and requests end, each has had one answer and nothing is left."""
        self.engine._by_hand = False
        for waiting in self.engine.waiting.values():
            if not waiting.done():
                waiting.set_result(None)
        for _ in range(300):
            self.turns()
            ended = [request for request in self.requests if request[1].done()]
            for request in ended:
                self.requests.remove(request)
                request[1].cancelled() or request[1].exception()
                self.loop.run_until_complete(self._release(request[0]))
            if not self.requests:
                break
        left = [(place.key.name, place.stage, len(place.waiting)) for place in self.residency._places.values()]
        assert not self.requests, f"every request has its answer, but these are left: {left}"
        self.turns(50)
        self.residency.check_integrity()
        assert set(self.engine.resident) == {place.key for place in self.residency._ledger}
        self.loop.run_until_complete(self.residency.close())
        self.loop.close()
        under_test.PATIENCE_SECONDS = self.patience

    async def _release(self, lease: Lease) -> None:
        lease.release()


TestResidencies = Residencies.TestCase
TestResidencies.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)
