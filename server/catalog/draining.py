"""Lets adapter versions go: out of the engine once nobody uses them.

That work goes on when whoever asked for it has left. Asyncio-confined.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

from adapters.errors import AdapterError
from server.adapter_key import AdapterKey
from server.catalog.registry import Registry
from server.engine.ipc.client import EngineClient
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


class Draining:
    """The versions on their way out of the engine. Until the engine is told, such a version can be kept."""

    def __init__(self, registry: Registry, engine: EngineClient, background: Background) -> None:
        self._registry = registry
        self._engine = engine
        self._background = background
        self._tasks: dict[AdapterKey, asyncio.Task[None]] = {}
        self._unloading: set[AdapterKey] = set()

    def begin(self, key: AdapterKey) -> None:
        """Unload ``key`` once its last lease is released. It stays usable until then."""
        if key not in self._tasks:
            task = self._tasks[key] = self._background.spawn(self._unload_when_unused(key))
            task.add_done_callback(lambda _: self._ended(key))

    async def cancel(self, key: AdapterKey) -> bool:
        """End a drain. True when ``key`` is still resident, False when it was being unloaded and is gone now."""
        task = self._tasks.get(key)
        if task is None:
            return False
        if key not in self._unloading:
            task.cancel()
        await asyncio.wait([task])
        return task.cancelled()

    async def finish(self, key: AdapterKey) -> None:
        """Unload ``key`` once its last lease is released, or, if that is forced meanwhile, at once."""
        self.begin(key)
        task = self._tasks[key]
        await asyncio.wait([task])
        if task.cancelled():
            await self.force(key)

    async def force(self, key: AdapterKey) -> None:
        """Unload ``key`` now, aborting its requests."""
        if key in self._tasks and key not in self._unloading:
            self._tasks[key].cancel()
        await self._engine.unload_adapter(key, force=True)

    async def _unload_when_unused(self, key: AdapterKey) -> None:
        await self._registry.unused(key)
        self._unloading.add(key)
        await self._engine.unload_adapter(key)
        self._registry.drained(key)

    def _ended(self, key: AdapterKey) -> None:
        del self._tasks[key]
        self._unloading.discard(key)
