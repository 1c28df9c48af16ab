"""How many sequences are in the house, and whether new ones may come in. Asyncio-confined."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from server.errors import EngineUnavailableError, QueueFullError
from server.registry import AdapterKey


class Admission:
    """Counts accepted sequences up to ``limit``; closed while loading (until ``open``) and while draining."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._active = 0
        self._by_adapter: Counter[AdapterKey | None] = Counter()
        self._closed = "the server is loading the base; try again"
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def active(self) -> int:
        """Sequences that have not ended."""
        return self._active

    def running(self, adapter: AdapterKey | None) -> int:
        """Sequences of one adapter version (None: the base) that have not ended."""
        return self._by_adapter[adapter]

    @property
    def closed_because(self) -> str:
        """Why nothing is accepted; empty while open."""
        return self._closed

    def open(self) -> None:
        """Accept from now on."""
        self._closed = ""

    def close(self, reason: str) -> None:
        """Accept nothing more; what runs goes on."""
        self._closed = reason

    @contextmanager
    def admit(self, sequences: int, adapter: AdapterKey | None = None) -> Iterator[None]:
        """Hold room for ``sequences``. Raises QueueFullError, or EngineUnavailableError while closed."""
        if self._closed:
            raise EngineUnavailableError(self._closed)
        if self._active + sequences > self._limit:
            raise QueueFullError(
                f"{self._active} sequences are running or waiting, the limit is {self._limit}; try later"
            )
        self._active += sequences
        self._by_adapter[adapter] += sequences
        self._idle.clear()
        try:
            yield
        finally:
            self._active -= sequences
            self._by_adapter[adapter] -= sequences
            if not self._by_adapter[adapter]:
                del self._by_adapter[adapter]
            if not self._active:
                self._idle.set()

    async def idle(self) -> None:
        """Wait until nothing is in the house."""
        await self._idle.wait()
