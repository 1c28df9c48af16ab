"""Keeps one server with its catalog: what others changed takes effect here, and what they left half done is ended."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress

from adapters.errors import AdapterError
from server.catalog.background import Background
from server.catalog.catalog import Catalog, Names
from server.catalog.database.asking import ask
from server.catalog.lifecycle import AdapterLifecycle
from server.errors import CatalogUnavailableError, ServerError

logger = logging.getLogger(__name__)
POLL_SECONDS = 0.5
DEAD_SECONDS = 30.0  # a server that has not said for so long that it lives is gone
_BEATS = 4  # in that time: each is a write to the disk


class Poller:
    """Asks the catalog again and again. Asyncio-confined; the database is asked in threads.

    Whether another server lives is told by whether what it counts grows, by this machine's clock that knows no jumps.
    """

    def __init__(
        self, lifecycle: AdapterLifecycle, *, every: float = POLL_SECONDS, dead_after: float = DEAD_SECONDS
    ) -> None:
        self._lifecycle = lifecycle
        self._catalog: Catalog = lifecycle.catalog
        self._every = every
        self._dead_after = dead_after
        self._revision = -1
        self._next_beat = 0.0
        self._beats: dict[str, tuple[int, float]] = {}  # of each server: the last count, and since when
        self._background = Background()
        self.failing = False

    async def restore(self) -> int:
        """Let all that the catalog knows take effect; returns how many names. Raises CatalogUnavailableError."""
        await ask(self._catalog.beat)
        names = await ask(self._catalog.load)
        created = {name: max((v.created for v in names.histories[name].all()), default=0.0) for name in names.histories}
        for name in sorted(created, key=lambda name: -created[name]):  # which are loaded in that order
            await self._follow(name, names)
        self._revision = names.revision
        return len(names.histories)

    def start(self) -> None:
        """Poll from now on."""
        self._background.spawn(self._run())

    async def close(self) -> None:
        """Poll no more, and let others know that this server has ended."""
        await self._background.close()
        with suppress(CatalogUnavailableError):
            await ask(self._catalog.leave)

    async def poll(self) -> None:
        """Once: follow what was changed, say that this server lives, end what nobody ends."""
        names = await ask(self._catalog.load, self._revision)
        for name in names.histories:  # side by side: one may take long to load
            self._background.spawn(self._follow(name, names))
        self._revision = names.revision
        if time.monotonic() >= self._next_beat:
            self._next_beat = time.monotonic() + self._dead_after / _BEATS
            await self._sweep()

    async def _run(self) -> None:
        while True:
            try:
                await self.poll()
                if self.failing:
                    logger.info("the catalog answers again")
                self.failing = False
            except ServerError as error:
                if not self.failing:
                    logger.error("the catalog cannot be followed: %s", error)
                self.failing = True
            except Exception:
                logger.exception("the catalog cannot be followed")
            await asyncio.sleep(self._every)

    async def _follow(self, name: str, names: Names) -> None:
        try:
            await self._lifecycle.follow(name, names.histories[name])
        except (ServerError, AdapterError) as error:
            logger.error("adapter %s is not what the catalog says: %s", name, error)
        except Exception:
            logger.exception("adapter %s is not what the catalog says", name)

    async def _sweep(self) -> None:
        now, beats = time.monotonic(), await ask(self._catalog.beat)
        known = self._beats
        self._beats = {
            server: known[server] if server in known and known[server][0] == count else (count, now)
            for server, count in beats.items()
            if server != self._catalog.server
        }
        dead = [server for server, (_, since) in self._beats.items() if now - since > self._dead_after]
        if dead:
            logger.info("%d servers of this catalog are gone", len(dead))
            await ask(self._catalog.forget_servers, dead)
        for leftover in await ask(self._catalog.leftovers):
            logger.info("package %s of %s was left behind; it is deleted", leftover.package, leftover.key)
            await self._lifecycle.sweep(leftover)
