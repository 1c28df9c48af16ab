"""Which adapter versions are in memory: loaded when a request comes for them, gone when others need the room.

Every version that is served can be asked for; a budget says how many of them are resident, the least recently used
leave first. What requests use, and what is pinned, never leaves. Asyncio-confined; knows no HTTP and no packages.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Literal

from adapters.errors import AdapterError, UnsupportedKindError
from server.adapter_key import AdapterKey
from server.catalog.combinations import NOT_COMBINABLE
from server.catalog.lease import Lease
from server.catalog.loading import Load
from server.catalog.memory_ledger import Budget
from server.catalog.observer import LifecycleObserver
from server.catalog.occupancy import Occupancy
from server.catalog.places import ColdStart, KeepRule, Order, Place, Stage, Unkept, quiet_future, refuse, resolve
from server.catalog.registry import Registry
from server.engine.ipc.client import EngineClient
from server.engine.messages import AdapterLoaded
from server.errors import (
    AdapterFailedError,
    BudgetError,
    EngineUnavailableError,
    InvalidRequestError,
    ServerError,
    UnknownModelError,
)

logger = logging.getLogger(__name__)
Tier = Literal["device", "loading", "store"]
MAX_COMBINATIONS = 32
PATIENCE_SECONDS = 1.0  # a load waits so long for requests to end before it has others wait
RESTART_SECONDS = 60.0  # and so long for another engine
_UNKEPT = Unkept()
_DOWN = "the engine is starting or restarting; try again shortly"


class Residency:
    """The versions in memory, within ``budget``.

    A request says ``want`` when it comes and waits for ``ensure``; it uses its version until its lease is released.
    Versions are loaded in the order in which they were first asked for. One that does not fit has idle ones leave, then
    waits for requests to end; when that takes long, the versions it waits for are given to no further request before
    it had its turn. So every load has its turn, however many are asked for, and nothing that runs is disturbed.

    A combination is made of its members once these are resident, and then is a version like others: it needs them no
    more. There are at most ``max_combinations``, so that others are not pushed out by many weights.

    ``rule`` says what was set for a name, ``load`` makes a package resident, be it after fetching it.
    ``eager``: what is served is loaded before the first request for it, as far as there is room.
    """

    def __init__(
        self,
        engine: EngineClient,
        registry: Registry,
        budget: Budget | None = None,
        observer: LifecycleObserver | None = None,
        *,
        rule: Callable[[str], KeepRule] = lambda _: _UNKEPT,
        load: Load | None = None,
        eager: bool = True,
        max_combinations: int = MAX_COMBINATIONS,
    ) -> None:
        self.engine = engine
        self.budget = budget or Budget()
        self._registry = registry
        self._observer = observer or LifecycleObserver()
        self._rule = rule
        self._load_package: Load = load or engine.load_adapter
        self._eager = eager
        self._max_combinations = max_combinations
        self._memory = Occupancy(engine, registry, self.budget, self._observer, rule=rule, changed=self._pump)
        self._places, self._queue, self._ledger = self._memory.places, self._memory.queue, self._memory.ledger
        self._shared: dict[AdapterKey, Mapping[str, int]] = {}  # what was learnt of versions with shared contents
        self._to_warm: deque[AdapterKey] = deque()
        self._pressing: asyncio.TimerHandle | None = None
        self._given_up: asyncio.TimerHandle | None = None

    # ---- requests ----

    def want(self, lease: Lease) -> None:
        """Begin to make the version of ``lease`` resident, unless it is: its request will ``ensure`` that.

        Many for one version load it once. It is theirs from the moment it is there, until they are released. Raises
        QueueFullError when there are too many combinations.
        """
        if lease.key is not None and lease.key.members and lease.key not in self._places:
            self._memory.combination_to_leave(self._max_combinations)
            # What it is made of comes first; what fails is told by ``ensure``.
            self._memory.background.spawn(self._have_members(lease.key))
        else:
            self._want(lease)

    async def ensure(self, lease: Lease) -> None:
        """Wait until the version of ``lease`` is resident; it stays until the lease is released. The base always is.

        After a restart of the engine to be asked again. Raises AdapterFailedError, UnknownModelError, BudgetError or
        StoreError when the version cannot be loaded, and EngineUnavailableError while there is no engine; of a
        combination InvalidRequestError when it cannot be made, and QueueFullError when there are too many.
        """
        if lease.key is not None and lease.key.members and lease.key not in self._places:
            await self._have_members(lease.key)
        while (waiting := self._want(lease)) is not None:
            if not self.engine.ready:
                raise EngineUnavailableError(self.engine.unavailable or _DOWN)
            await waiting

    def stage(self, key: AdapterKey) -> Stage | None:
        """Where a version stands; None when it is only stored."""
        place = self._places.get(key)
        return None if place is None else place.stage

    def tier(self, key: AdapterKey) -> Tier:
        """Where a version is, in words: on the device, on its way there, or only in the store."""
        match self.stage(key):
            case Stage.RESIDENT | Stage.LEAVING:
                return "device"
            case Stage.LOADING | Stage.WAITING:
                return "loading"
        return "store"

    def cold_start(self, lease: Lease) -> ColdStart | None:
        """How the version that ``lease`` uses was loaded, if this request waited for that."""
        place = self._places.get(lease.key) if lease.key is not None else None
        start = place.start if place is not None else None
        return start if start is not None and lease in start.waited else None

    # ---- changes ----

    async def load(self, key: AdapterKey, path: Path, *, allow_noop: bool = False, nbytes: int = 0) -> AdapterLoaded:
        """Make the package in ``path`` resident under ``key``, for an operator who waits for the answer.

        ``nbytes`` is about what it will take. An adapter that answers exactly as the base does is refused unless
        ``allow_noop``. Raises AdapterError, BudgetError, EngineUnavailableError.
        """
        if not self.engine.ready:
            raise EngineUnavailableError(self.engine.unavailable or _DOWN)
        place = self._place(key, nbytes)
        if place.stage is Stage.RESIDENT and place.loaded is not None:
            self._ledger.touch(place)
            return place.loaded
        place.orders.append(order := Order(path, allow_noop, quiet_future()))
        self._enqueue(place)
        return await order.loaded(key)

    async def unload(self, key: AdapterKey, *, force: bool = False) -> None:
        """Have a version leave memory when its last request has ended, or with ``force`` at once; wait for that.

        Requests that still wait for it are refused. So do combinations of it.
        """
        for combination in [other for other in self._places if other.members and key in other.versions]:
            await self.unload(combination, force=force)
        place = self._places.get(key)
        if place is None:
            return
        place.warm = False
        place.refuse(UnknownModelError(f"{key} was removed while this request waited for it to be loaded"))
        if place.stage is Stage.WAITING:
            self._memory.forget(place)
        elif place.leaving is None:
            self._memory.leave(place, force=force)
        elif force:
            await self.engine.unload_adapter(key, force=True)  # hastens it
        if place.leaving is not None:
            await asyncio.shield(place.leaving)

    def warm(self, keys: Iterable[AdapterKey]) -> None:
        """Load versions in the background, in this order, as far as there is room; pinned ones in any case.

        Unless ``eager`` only those that are pinned.
        """
        self._to_warm.extend(key for key in keys if self._eager or self._memory.is_pinned(key))
        self._pump()

    def rule_changed(self, name: str) -> None:
        """What was set for ``name`` is another now: its versions stay, or leave, accordingly."""
        for place in self._ledger:
            if place.key.name == name:
                self._memory.watch(place)
        number = self._registry.live_number(name)
        if number is not None and self._rule(name).pinned:
            self.warm([self._registry.version(name, number).key])
        self._pump()

    def engine_started(self) -> None:
        """Another engine serves: what was resident and is not comes back, the most recently used first."""
        self._stop(self._given_up)
        self._given_up = None
        self._memory.pressed.clear()
        for place in self._ledger:
            if place.stage is Stage.RESIDENT and place.key not in self.engine.resident:
                self._to_warm.appendleft(place.key)
                self._memory.out(place)
        self._pump()

    def held(self) -> list[AdapterKey]:
        """Versions that requests use: what another engine needs before it can go on with them."""
        return [place.key for place in self._ledger if place.holders]

    def lost(self, key: AdapterKey, reason: str) -> None:
        """Another engine could not load ``key``: it has failed, until it is uploaded or activated again."""
        self._registry.failed(key, reason)

    async def settle(self) -> None:
        """Wait until nothing is on its way in or out."""
        await self._memory.background.settle()

    async def close(self) -> None:
        """Give up what is under way."""
        self._stop(self._pressing, self._given_up, *(place.timer for place in self._places.values()))
        await self._memory.background.close()
        for place in self._places.values():
            place.refuse(EngineUnavailableError("the server is stopping"))

    # ---- figures ----

    @property
    def num_resident(self) -> int:
        """How many versions take memory, those on their way in or out included."""
        return len(self._ledger)

    @property
    def nbytes(self) -> int:
        """What they take together."""
        return self._ledger.nbytes

    def check_integrity(self) -> None:
        """Raise AssertionError unless everything is in one place, and within the budget."""
        self._ledger.check_integrity()
        assert all(self._places[place.key] is place for place in self._ledger)
        for key, place in self._places.items():
            assert (place.stage is Stage.WAITING) == (key in self._queue), "what is not in memory waits for its turn"
            assert place.stage is not Stage.LOADING or key in self._queue.loading
            assert place.stage is Stage.RESIDENT or place.stage is Stage.LEAVING or not place.holders
            assert not (place.stage is Stage.RESIDENT and place.waiting and not place.pressed), "it is theirs"

    # ---- the queue ----

    def _want(self, lease: Lease) -> asyncio.Future[None] | None:
        """What ``lease`` waits for, if it does; else the version is its own now."""
        if lease.key is None:
            return None
        place = self._place(lease.key)
        if lease in place.holders:
            return None
        lease.then(self._memory.released)
        if place.stage is Stage.RESIDENT and not place.pressed:
            self._memory.hold(place, lease)
            return None
        waiting = place.waiting.setdefault(lease, quiet_future())
        self._enqueue(place)
        return waiting

    async def _have_members(self, key: AdapterKey) -> None:
        """Have what is to be combined resident. Who waits for one keeps no other from anybody: each is held alone."""

        async def have(version: AdapterKey) -> None:
            with self._registry.hold(version) as lease:
                await self.ensure(lease)

        for failed in await asyncio.gather(*map(have, key.versions), return_exceptions=True):
            if failed is not None:
                raise failed

    def _place(self, key: AdapterKey, nbytes: int = 0) -> Place:
        place = self._places.get(key)
        if place is None:
            if key.members and (idle := self._memory.combination_to_leave(self._max_combinations)) is not None:
                self._memory.evict(idle, "room")
            place = self._places[key] = Place(key, nbytes, self._shared.get(key, {}))
        return place

    def _enqueue(self, place: Place) -> None:
        """Have a version that is not in memory wait for its turn, and give turns."""
        if place.stage is Stage.WAITING and place.key not in self._queue:
            place.asked = asyncio.get_running_loop().time()
            self._queue.add(place)
        self._pump()

    def _pump(self) -> None:
        """Give turns as far as the engine and the memory allow; to be called whenever either may allow more."""
        if not self.engine.ready:
            if self._queue and self._given_up is None:
                self._given_up = asyncio.get_running_loop().call_later(RESTART_SECONDS, self._give_up)
            return
        while (place := self._queue.due) is not None:
            place.nbytes = place.nbytes or self._memory.known_bytes(place.key)
            if not self._ledger.can_fit(place):
                self._fail(place, self._ledger.no_room(place))
            elif self._memory.make_room(place):
                self._start(place)
            else:
                if self._pressing is None:
                    self._pressing = asyncio.get_running_loop().call_later(PATIENCE_SECONDS, self._press)
                return
        if not self._queue:
            self._unpress()
            self._warm_next()

    def _press(self) -> None:
        """The first in the queue has waited long: versions in use are kept for their users, and then go."""
        self._pressing = None
        if (place := self._queue.first) is not None:
            self._memory.press(place)
        self._pump()

    def _unpress(self) -> None:
        """Nobody waits for room any more."""
        self._stop(self._pressing)
        self._pressing = None
        self._memory.unpress()

    def _warm_next(self) -> None:
        while self._to_warm and not self._queue.loading and not self._queue:
            key = self._to_warm.popleft()
            if key in self._places or not self._memory.is_served(key):
                continue
            place = self._place(key, self._memory.known_bytes(key))
            place.warm = self._memory.is_pinned(key) or self._ledger.fits(place)
            if place.warm:
                self._enqueue(place)
            else:
                self._memory.forget(place)

    # ---- loading ----

    def _start(self, place: Place) -> None:
        self._queue.begin(place)
        self._unpress()
        place.stage = Stage.LOADING
        self._ledger.add(place)
        self._memory.background.spawn(self._load(place))

    async def _load(self, place: Place) -> None:
        """One turn. Orders that come meanwhile have their own unless this one succeeds."""
        orders, place.orders = place.orders, []
        queued = asyncio.get_running_loop().time() - place.asked
        try:
            loaded = await self._ask(place, orders)
        except EngineUnavailableError as error:
            self._died(place, orders, error)
        except BudgetError as error:
            self._refused(place, orders, error)
        except (AdapterError, ServerError) as error:
            self._failed(place, orders, error)
        else:
            self._loaded(place, orders, loaded, queued)
        self._pump()

    async def _ask(self, place: Place, orders: list[Order]) -> AdapterLoaded:
        place.sent = False
        paths, allow_noop = ([orders[0].path], orders[0].allow_noop) if orders else ([], True)  # accepted before
        try:
            packages = [member.key for member in place.key.members] or [place.key]
            paths = paths or [self._registry.leased(package).path for package in packages]
            place.sent = self.engine.ready
            return await self._load_package(place.key, *paths, allow_noop=allow_noop)
        finally:
            self._queue.end(place)

    def _loaded(self, place: Place, orders: list[Order], loaded: AdapterLoaded, queued: float) -> None:
        place.loaded, place.warm, place.deaths = loaded, False, 0
        self._ledger.resize(place, loaded.nbytes, loaded.shared)
        if loaded.shared and not place.key.members:  # of which there is no end
            self._shared[place.key] = loaded.shared
        if not orders:
            seconds = {"queue": queued, **loaded.seconds}
            place.start = ColdStart(seconds, time.perf_counter(), frozenset(place.waiting))
            if not place.key.members:
                self._observer.adapter_came_back(seconds)
        for order in (*orders, *place.orders):
            resolve(order.reply, loaded)
        place.orders.clear()
        if place.stage is Stage.LOADING:
            place.stage = Stage.RESIDENT
            self._ledger.touch(place)
            self._memory.hand_out(place)

    def _failed(self, place: Place, orders: list[Order], error: Exception) -> None:
        """A load has failed: so have the requests that waited for it, and the version if its package is at fault."""
        if isinstance(error, UnsupportedKindError) and place.key.members:
            error = InvalidRequestError(str(error), param="model", code=NOT_COMBINABLE)
        elif not orders and isinstance(error, AdapterError):
            self._registry.failed(place.key, str(error))
            logger.error("adapter %s could not be loaded again: %s", place.key, error)
            error = AdapterFailedError(f"{place.key} cannot be loaded: {error}")
        later, place.orders = place.orders, list(orders)
        place.refuse(error)
        place.orders, place.warm = later, False
        if place.stage is Stage.LOADING:
            self._memory.out(place)

    def _refused(self, place: Place, orders: list[Order], error: BudgetError) -> None:
        """The engine has no memory for it: it takes more than was thought, or there is less. It has another turn.

        An idle one leaves for each such turn, if that is all that can be done; without any it has failed.
        """
        self._ledger.resize(place, error.nbytes or place.nbytes, place.shared)
        spare = self._ledger.idle() if self._ledger.is_within or not error.nbytes else None
        if place.stage is Stage.LEAVING or (spare is None and (self._ledger.is_within or not error.nbytes)):
            self._failed(place, orders, error)
            return
        if spare is not None:
            self._memory.evict(spare, "room")
        place.orders = orders + place.orders
        self._memory.out(place, again=True)

    def _died(self, place: Place, orders: list[Order], error: EngineUnavailableError) -> None:
        """The engine ended: requests wait for the next one. What ends two of them while it is loaded has failed."""
        for order in orders:
            refuse(order.reply, error)
        place.deaths += place.sent
        if place.deaths > 1:
            self._failed(place, [], AdapterError("the engine ended while it was being loaded, alone as well"))
        elif place.stage is Stage.LOADING:
            self._memory.out(place, again=True)

    def _give_up(self) -> None:
        """There is no engine still."""
        self._given_up = None
        for place in self._queue:
            place.refuse(EngineUnavailableError(self.engine.unavailable or _DOWN))
            if not place.is_wanted:
                self._memory.forget(place)

    def _fail(self, place: Place, error: Exception) -> None:
        """One that waits for its turn will have none."""
        place.warm = False
        place.refuse(error)
        self._memory.forget(place)

    @staticmethod
    def _stop(*timers: asyncio.TimerHandle | None) -> None:
        for timer in timers:
            if timer is not None:
                timer.cancel()
