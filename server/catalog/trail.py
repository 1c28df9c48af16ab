"""The audit trail of a server: refusals go to the database behind the requests, and old events leave it.

Changes write their own events, in their own transactions. Asyncio-confined.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Hashable
from contextlib import suppress
from typing import cast

from server.catalog.background import Background, Repeated
from server.catalog.database.asking import ask
from server.catalog.database.events import EventTable
from server.catalog.events import ANONYMOUS, Actor, Entry, Event, EventQuery, Repetitions
from server.errors import ServerError

logger = logging.getLogger(__name__)
MAX_WAITING = 4096  # events that the database has not taken; of more the oldest are only in the log
WRITE_SECONDS = 1.0
EXPIRE_SECONDS = 3600.0
DAY_SECONDS = 86400.0


class Trail:
    """Events of ``table``, kept for ``days`` (0: for ever)."""

    def __init__(self, table: EventTable, *, days: float = 0.0) -> None:
        self._table = table
        self._days = days
        self._waiting: list[Entry] = []
        self._repetitions = Repetitions()
        self._writing = asyncio.Lock()
        self._background = Background()
        self._repeated = (
            Repeated(self._write, WRITE_SECONDS, "events wait"),
            Repeated(self.expire, EXPIRE_SECONDS, "old events stay"),
        )

    def start(self) -> None:
        """Write from now on, in the running loop."""
        for work in self._repeated:
            work.start()

    async def close(self) -> None:
        """Write what waits, as far as the database takes it."""
        for work in self._repeated:
            await work.close()
        self._tell_left_out(float("inf"))
        await self._background.settle()
        with suppress(ServerError):
            await self.flush()

    def record(self, entry: Entry) -> None:
        """Write ``entry`` soon."""
        self._waiting.append(entry)
        if (over := len(self._waiting) - MAX_WAITING) > 0:
            del self._waiting[:over]
            logger.warning("the catalog takes no events: %d are in the log alone", over)

    def record_refusal(self, entry: Entry) -> bool:
        """As ``record``, but a refusal of one sort once a minute: whoever tries keys may try many. Whether it is told.

        Of a sort are those of one actor, address, action and reason.
        """
        sort = (entry.actor.name, entry.actor.address, entry.event.action, entry.event.detail.get("code"))
        if not self._repetitions.passes(sort, time.monotonic()):
            return False
        self.record(entry)
        return True

    async def flush(self) -> None:
        """Write what waits now. Raises CatalogUnavailableError; it goes on waiting then."""
        await self._background.to_the_end(self._flush())  # else what was written would be so again

    async def _flush(self) -> None:
        async with self._writing:
            if batch := list(self._waiting):
                await ask(self._table.append, batch)
                written = set(map(id, batch))
                self._waiting = [entry for entry in self._waiting if id(entry) not in written]

    async def find(self, query: EventQuery) -> list[Entry]:
        """The events that are asked for, this server's among them. Raises CatalogUnavailableError."""
        await self.flush()
        return await ask(self._table.find, query)

    async def expire(self) -> None:
        """Forget what is older than ``days``. Raises CatalogUnavailableError."""
        if self._days:
            await ask(self._table.delete_before, time.time() - self._days * DAY_SECONDS)

    async def _write(self) -> None:
        self._tell_left_out(time.monotonic())
        await self.flush()

    def _tell_left_out(self, now: float) -> None:
        for sort, count in self._repetitions.left_out(now):
            self.record(_repeated(sort, count))


def _repeated(sort: Hashable, count: int) -> Entry:
    """That ``count`` more refusals of a sort followed the one that was told; without a sort: of many sorts."""
    actor, action, detail = Actor(ANONYMOUS), "access", {"repeated": count, "reason": "further keys and addresses"}
    if sort is not None:
        name, address, action, code = cast(tuple[str, str, str, str | None], sort)
        actor, detail = Actor(name, address), {"repeated": count, "code": code}
    return Entry(actor=actor, event=Event(action, None, detail), time=time.time(), outcome="refused")
