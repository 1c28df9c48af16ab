"""Work that goes on when whoever asked for it has left. Asyncio-confined."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

from adapters.errors import AdapterError
from server.errors import ServerError

logger = logging.getLogger(__name__)
T = TypeVar("T")


class Background:
    """A set of running tasks. What ends one unexpectedly is logged, whether or not somebody waits for it."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start ``work`` on its own."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    async def to_the_end(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for ``work``, which is not cancelled when the waiting is."""
        return await asyncio.shield(self.spawn(work))

    async def settle(self) -> None:
        """Wait until nothing runs."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def close(self) -> None:
        """Cancel what runs, and wait for it."""
        for task in self._tasks:
            task.cancel()
        await self.settle()

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, (AdapterError, ServerError)):
            logger.error("background work failed", exc_info=error)
