"""The keys of a server: those of its catalog as requests ask for them, from memory. Asyncio-confined.

What another server on the catalog, or the command line, changes is taken over by ``refresh``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from server.catalog.background import Background, Repeated
from server.catalog.database.asking import ask
from server.catalog.database.keys import KeyTable, StoredKeys
from server.catalog.key_changes import KeyChanges
from server.catalog.keys import KeyRecord, KeyRing
from server.errors import ServerError, UnknownKeyError

REFRESH_SECONDS = 1.0
USED_SECONDS = 60.0


class KeyManager:
    """Keys of ``table``. ``guarded`` says whether changes must leave an admin key: see ``KeyChanges``."""

    def __init__(self, table: KeyTable, *, guarded: bool) -> None:
        self._table = table
        self._changes = KeyChanges(table, guarded)
        self._stored = StoredKeys()
        self.ring = KeyRing()
        self._used: dict[str, float] = {}  # and not written yet
        self._changing = asyncio.Lock()
        self._background = Background()
        self._refreshing = Repeated(self.refresh, REFRESH_SECONDS, "keys stay as they were")
        self._writing = Repeated(self.write_used, USED_SECONDS, "when keys were used is not written yet")

    def load(self) -> None:
        """Read the keys, before anything is served; blocks. Raises CatalogUnavailableError."""
        self._stored = self._table.read()
        self.ring.adopt(self._stored.records.values())

    def start(self) -> None:
        """Keep up with the catalog from now on, in the running loop."""
        self._refreshing.start()
        self._writing.start()

    async def close(self) -> None:
        """Write what is not written yet."""
        await self._refreshing.close()
        await self._writing.close()
        await self._background.settle()
        with suppress(ServerError):
            await self.write_used()

    # ---- requests ----

    def used(self, id: str, now: float) -> None:
        """A request bore the key. Written to the catalog once a minute."""
        self._used[id] = now

    # ---- changes ----

    async def create(self, record: KeyRecord) -> None:
        """Keep a new key. Raises as ``KeyChanges``, as all of these do."""
        await self._change(lambda: self._changes.add(record))

    async def update(self, id: str, fields: Mapping[str, Any]) -> KeyRecord:
        """Set ``fields`` of a key."""
        await self._change(lambda: self._changes.update(id, fields))
        return self.get(id)

    async def rotate(self, id: str, grace: float) -> tuple[KeyRecord, str]:
        """Give a key a new secret."""
        secrets: list[str] = []

        def work() -> StoredKeys:
            stored, secret = self._changes.rotate(id, grace)
            secrets.append(secret)
            return stored

        await self._change(work)
        return self.get(id), secrets[0]

    async def revoke(self, id: str) -> KeyRecord:
        """End a key."""
        await self._change(lambda: self._changes.revoke(id))
        return self.get(id)

    async def forget(self, id: str) -> None:
        """Delete the record of a key that was revoked."""
        await self._change(lambda: self._changes.forget(id))

    # ---- inspection ----

    def get(self, id: str) -> KeyRecord:
        """One key. Raises UnknownKeyError."""
        if (record := self.ring.get(id)) is None:
            raise UnknownKeyError(f"there is no key {id[:40]!a}; GET /v1/keys lists them")
        return record

    def last_used(self, id: str) -> float | None:
        """When a request bore the key last, as far as is known here: others write it once a minute."""
        times = [time for time in (self._stored.last_used.get(id), self._used.get(id)) if time is not None]
        return max(times, default=None)

    async def reload(self) -> None:
        """Read everything anew. Raises CatalogUnavailableError."""
        await self._change(self._table.read)

    # ---- keeping up ----

    async def refresh(self) -> None:
        """Take over what has changed in the catalog. Raises CatalogUnavailableError."""
        if await ask(self._table.mark) != self._stored.mark:
            await self.reload()

    async def write_used(self) -> None:
        """Write when keys were used. Raises CatalogUnavailableError."""
        if times := dict(self._used):
            await ask(self._table.note_used, times)
            self._stored.last_used.update(times)
            self._used = {id: last for id, last in self._used.items() if times.get(id) != last}

    async def _change(self, work: Callable[[], StoredKeys]) -> None:
        """Do ``work`` to its end, even if the caller leaves, and answer requests by what is stored then."""
        await self._background.to_the_end(self._adopt(work))

    async def _adopt(self, work: Callable[[], StoredKeys]) -> None:
        async with self._changing:  # so that nothing older is adopted last
            self._stored = await ask(work)
            self.ring.adopt(self._stored.records.values())
