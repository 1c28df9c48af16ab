"""Who holds what, counted: a thing is let go only when nobody holds it. Asyncio-confined."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from types import TracebackType
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class Lease(Generic[K]):
    """Holds ``key`` (None: nothing that could go away) until released; releasing again does nothing."""

    def __init__(self, key: K | None, release: Callable[[], None]) -> None:
        self.key = key
        self._release: Callable[[], None] | None = release

    def release(self) -> None:
        """Let go."""
        release, self._release = self._release, None
        if release is not None:
            release()

    def __enter__(self) -> K | None:
        return self.key

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()


class LeaseTable(Generic[K]):
    """Counts leases by key."""

    def __init__(self) -> None:
        self._counts: dict[K, int] = {}
        self._waiters: dict[K, asyncio.Event] = {}

    def acquire(self, key: K | None) -> Lease[K]:
        """Hold ``key``."""
        if key is None:
            return Lease(None, lambda: None)
        held = key
        self._counts[held] = self._counts.get(held, 0) + 1
        return Lease(held, lambda: self._release(held))

    async def unused(self, key: K) -> None:
        """Wait until nobody holds ``key``."""
        while key in self._counts:
            await self._waiters.setdefault(key, asyncio.Event()).wait()

    def _release(self, key: K) -> None:
        self._counts[key] -= 1
        if not self._counts[key]:
            del self._counts[key]
            waiting = self._waiters.pop(key, None)
            if waiting is not None:
                waiting.set()
