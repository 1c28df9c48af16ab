"""Work that must hold the event loop (parsing, checking), kept from holding it for long."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Turns:
    """Pieces of such work, one at a time; after each the loop is left to others for as long as the piece took.

    One piece is bounded by what a request may hold; many requests at once are bounded by this.
    """

    def __init__(self) -> None:
        self._free = asyncio.Lock()

    @asynccontextmanager
    async def take(self) -> AsyncIterator[None]:
        """Wait for a turn and hold it."""
        await self._free.acquire()
        started = time.perf_counter()
        try:
            yield
        finally:
            asyncio.get_running_loop().call_later(time.perf_counter() - started, self._free.release)
