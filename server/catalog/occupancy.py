"""The versions that take memory: who uses them, how long idle ones stay, and how they leave. Asyncio-confined."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from server.adapter_key import AdapterKey
from server.catalog.background import Background
from server.catalog.lease import Lease
from server.catalog.load_queue import LoadQueue
from server.catalog.memory_ledger import Budget, MemoryLedger
from server.catalog.observer import Evicted, LifecycleObserver
from server.catalog.places import KeepRule, Place, Stage, resolve
from server.catalog.registry import Registry
from server.engine.ipc.client import EngineClient
from server.errors import QueueFullError

logger = logging.getLogger(__name__)


class Occupancy:
    """The ``places`` of versions that are in memory, on their way in or out, or in the ``queue``.

    ``changed`` is called whenever another may have its turn: one has left, or has one user less.
    """

    def __init__(
        self,
        engine: EngineClient,
        registry: Registry,
        budget: Budget,
        observer: LifecycleObserver,
        *,
        rule: Callable[[str], KeepRule],
        changed: Callable[[], None],
    ) -> None:
        self.places: dict[AdapterKey, Place] = {}
        self.queue = LoadQueue()
        self.ledger = MemoryLedger(budget, self.is_pinned)
        self.pressed: list[Place] = []
        self.background = Background()
        self._engine = engine
        self._registry = registry
        self._observer = observer
        self._rule = rule
        self._changed = changed

    def is_pinned(self, key: AdapterKey) -> bool:
        """Whether a version never leaves by itself."""
        return self._rule(key.name).pinned and self._registry.live_number(key.name) == key.version

    def is_served(self, key: AdapterKey) -> bool:
        """Whether requests may come for a version that can be loaded."""
        known = self._registry.find_version(key)
        return known is not None and self._registry.serves(key) and self._registry.failure(key) is None

    def known_bytes(self, key: AdapterKey) -> int:
        """About what a version takes, or will take; 0: nobody knows."""
        known = (self._registry.find_version(version) for version in key.versions)
        return sum(version.nbytes for version in known if version is not None)

    # ---- users ----

    def hold(self, place: Place, lease: Lease) -> None:
        """A request uses a version that is resident."""
        place.holders.add(lease)
        self.ledger.touch(place)
        place.stop_timer()

    def hand_out(self, place: Place) -> None:
        """Let those who wait for a version that is resident have it."""
        for lease, waiting in place.waiting.items():
            self.hold(place, lease)
            resolve(waiting, None)
        place.waiting.clear()
        self.watch(place)

    def released(self, lease: Lease) -> None:
        """A request is over, or its client has left."""
        place = self.places.get(lease.key) if lease.key is not None else None
        if place is None:
            return
        place.holders.discard(lease)
        place.waiting.pop(lease, None)
        if place.stage is Stage.WAITING and not place.is_wanted:
            self.forget(place)
        self.watch(place)
        self._changed()

    # ---- room for others ----

    def make_room(self, place: Place) -> bool:
        """Whether there is room for ``place`` now; idle ones leave for it where there is none."""
        if self.ledger.fits(place):
            return True
        for victim in self.ledger.to_evict(place):
            self.evict(victim, "room")
        return False

    def press(self, place: Place) -> None:
        """Have versions in use given to no further request, so that they go for ``place``, where it does not fit."""
        if not self.ledger.fits(place):
            for busy in self.ledger.to_press(place):
                busy.pressed = True
                self.pressed.append(busy)

    def unpress(self) -> None:
        """Nobody waits for room any more."""
        for place in self.pressed:
            if place.pressed and place.stage is Stage.RESIDENT:
                place.pressed = False
                self.hand_out(place)
        self.pressed.clear()

    def combination_to_leave(self, most: int) -> Place | None:
        """Which combination leaves for another one, if one has to. Raises QueueFullError when all are in use."""
        there = [place for place in self.places.values() if place.key.members and place.stage is not Stage.LEAVING]
        if len(there) < most:
            return None
        idle = next((place for place in self.ledger if place.key.members and place.is_idle), None)
        if idle is None:
            raise QueueFullError(
                f"{len(there)} combinations of adapters are in use, the limit (--max-combinations); try again later"
            )
        return idle

    # ---- leaving ----

    def watch(self, place: Place) -> None:
        """Have an idle version leave after its time."""
        place.stop_timer()
        seconds = self._rule(place.key.name).idle_ttl_seconds
        if seconds is not None and place.is_idle:
            place.timer = asyncio.get_running_loop().call_later(seconds, self._expire, place)

    def evict(self, place: Place, why: Evicted) -> None:
        """Have an idle version leave."""
        logger.debug("adapter %s leaves memory (%s)", place.key, why)
        self._observer.adapter_evicted(why)
        self.leave(place, force=False)

    def leave(self, place: Place, *, force: bool) -> None:
        """Have a version leave after its last request, or with ``force`` at once."""
        place.stop_timer()
        place.stage = Stage.LEAVING
        place.leaving = self.background.spawn(self._unload(place, force))

    def out(self, place: Place, *, again: bool = False) -> None:
        """It is in memory no more; it has another turn if something waits for it, ``again`` its own."""
        self.ledger.remove(place)
        place.stop_timer()
        place.stage, place.loaded, place.start, place.pressed = Stage.WAITING, None, None, False
        place.holders.clear()
        if not place.is_wanted:
            del self.places[place.key]
        elif again:
            self.queue.put_back(place)
        else:
            self.queue.add(place)

    def forget(self, place: Place) -> None:
        """Nothing waits any more for one that is not in memory."""
        self.queue.leave(place)
        del self.places[place.key]

    def _expire(self, place: Place) -> None:
        if place.is_idle and not self.is_pinned(place.key):
            self.evict(place, "ttl")

    async def _unload(self, place: Place, force: bool) -> None:
        await self._engine.unload_adapter(place.key, force=force)
        place.leaving = None
        if self.places.get(place.key) is place and place.stage is Stage.LEAVING:
            self.out(place)
        self._changed()
