"""Work that goes on when whoever asked for it has left, and work that is done again and again. Asyncio-confined."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
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


class Repeated:
    """``work`` again and again, with ``every`` seconds between, or sooner when it is woken; ``start`` to ``close``.

    What goes wrong ends nothing: it is logged, behind what is ``late`` by that, and the work is tried again.
    """

    def __init__(self, work: Callable[[], Awaitable[object]], every: float, late: str) -> None:
        self._work = work
        self._every = every
        self._late = late
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Do it from now on, in the running loop."""
        self._task = asyncio.create_task(self._run())

    def wake(self) -> None:
        """Do it now; once more if it is being done."""
        self._wake.set()

    async def close(self) -> None:
        """Break it off."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        failing = False
        while True:
            self._wake.clear()
            try:
                await self._work()
                failing = False
            except ServerError as error:
                logger.log(logging.DEBUG if failing else logging.WARNING, "%s: %s", self._late, error)
                failing = True
            except Exception:
                logger.exception(self._late)
            await set_within(self._wake, self._every)


async def set_within(event: asyncio.Event, seconds: float) -> None:
    """Wait for ``event``, but no longer.

    Not by ``asyncio.wait_for``: until Python 3.12 whoever is cancelled there in the moment the event comes goes on.
    """
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
