"""A version on its way into memory, there, or on its way out, and what waits for it. Plain bookkeeping."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from server.adapter_key import AdapterKey
from server.catalog.lease import Lease
from server.engine.messages import AdapterLoaded
from server.traces import Attribute, part

LOAD = "load adapter"  # as a part of a request


def stage_attributes(seconds: Mapping[str, float]) -> dict[str, Attribute]:
    """What the span of a load says of its stages."""
    return {f"hotswap.load.{stage}_seconds": took for stage, took in seconds.items()}


class KeepRule(Protocol):
    """What an operator has set for a name. ``idle_ttl_seconds`` None: it stays while there is room."""

    @property
    def pinned(self) -> bool:
        """Whether its live version never leaves memory."""

    @property
    def idle_ttl_seconds(self) -> float | None:
        """How long a version stays in memory without a request."""


@dataclass(frozen=True)
class Unkept(KeepRule):
    """A name of which nothing was set."""

    pinned: bool = False
    idle_ttl_seconds: float | None = None


class Stage(StrEnum):
    """Where a version stands. The last three take memory."""

    WAITING = "waiting"
    LOADING = "loading"
    RESIDENT = "resident"
    LEAVING = "leaving"


@dataclass(eq=False)
class Order:
    """A load that an operator's change asked for, of the package in ``path``."""

    path: Path
    allow_noop: bool
    reply: asyncio.Future[AdapterLoaded]

    async def loaded(self, key: AdapterKey) -> AdapterLoaded:
        """What it gives: of the request that waits for it this is a part."""
        with part(LOAD) as told:
            loaded = await asyncio.shield(self.reply)
            told.update({"hotswap.adapter": str(key), **stage_attributes(loaded.seconds)})
        return loaded


@dataclass(frozen=True, eq=False)
class ColdStart:
    """How a version was loaded for requests: ``seconds`` by stage, until ``ended`` (perf_counter). They ``waited``."""

    seconds: Mapping[str, float]
    ended: float
    waited: frozenset[Lease]


@dataclass(eq=False)
class Place:
    """One version that is resident, on its way in or out, or wanted.

    ``nbytes`` is what it takes, or is thought to take before its first load; those of ``shared`` digests are in memory
    once, whoever uses them. ``waiting`` and ``orders`` want it,
    ``holders`` use it. ``warm``: it is wanted whether or not a request is. While ``pressed`` it is not given to more
    requests, so that it can go. ``deaths``: engines that ended while it was being loaded, once it was ``sent`` to them.
    """

    key: AdapterKey
    nbytes: int
    shared: Mapping[str, int] = field(default_factory=dict)
    stage: Stage = Stage.WAITING
    asked: float = 0.0
    waiting: dict[Lease, asyncio.Future[None]] = field(default_factory=dict)
    orders: list[Order] = field(default_factory=list)
    holders: set[Lease] = field(default_factory=set)
    loaded: AdapterLoaded | None = None
    warm: bool = False
    pressed: bool = False
    deaths: int = 0
    sent: bool = False
    start: ColdStart | None = None
    leaving: asyncio.Task[None] | None = None
    timer: asyncio.TimerHandle | None = None

    def refuse(self, error: Exception) -> None:
        """Tell all that wait for it that it will not be there."""
        for waiting in self.waiting.values():
            refuse(waiting, error)
        for order in self.orders:
            refuse(order.reply, error)
        self.waiting.clear()
        self.orders.clear()

    def stop_timer(self) -> None:
        """Let the time that it may be idle for not end."""
        if self.timer is not None:
            self.timer.cancel()

    @property
    def is_wanted(self) -> bool:
        """Whether anything waits for it to be resident."""
        return bool(self.waiting or self.orders or self.warm)

    @property
    def is_idle(self) -> bool:
        """Whether it is resident and nothing uses it."""
        return self.stage is Stage.RESIDENT and not self.holders


def quiet_future() -> asyncio.Future[Any]:
    """A future whose error may go unseen: whoever waits for it may have left."""
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    future.add_done_callback(lambda done: done.cancelled() or done.exception())
    return future


def resolve(future: asyncio.Future[Any], result: object) -> None:
    """Answer whoever waits, if somebody does."""
    if not future.done():
        future.set_result(result)


def refuse(future: asyncio.Future[Any], error: Exception) -> None:
    """Tell whoever waits, if somebody does, what is in the way."""
    if not future.done():
        future.set_exception(error)
