"""Lets adapter versions go: out of the engine once nobody uses them, then perhaps off the disk.

That work goes on when whoever asked for it has left. Asyncio-confined.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
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


@dataclass(eq=False)
class _Drain:
    """One version on its way out. Until ``unloading`` is set it can be called back."""

    task: asyncio.Task[None]
    unloading: bool = False


class Draining:
    """The versions on their way out of the engine."""

    def __init__(self, registry: Registry, engine: EngineClient, background: Background) -> None:
        self._registry = registry
        self._engine = engine
        self._background = background
        self._drains: dict[AdapterKey, _Drain] = {}

    def begin(self, key: AdapterKey) -> None:
        """Unload ``key`` once its last lease is released. It stays usable until then."""
        if key not in self._drains:
            task = self._background.spawn(self._unload_when_unused(key))
            self._drains[key] = _Drain(task)
            task.add_done_callback(lambda _: self._drains.pop(key))

    async def call_back(self, key: AdapterKey) -> bool:
        """End a drain. True when ``key`` is still resident, False when it was being unloaded and is gone now."""
        drain = self._drains.get(key)
        if drain is None:
            return False
        if not drain.unloading:
            drain.task.cancel()
        await asyncio.wait([drain.task])
        return drain.task.cancelled()

    async def finish(self, key: AdapterKey, then: Callable[[], None]) -> None:
        """Unload ``key`` once its last lease is released, then call ``then`` in a thread."""
        self.begin(key)
        await asyncio.wait([self._drains[key].task])
        await asyncio.to_thread(then)

    async def force(self, key: AdapterKey, then: Callable[[], None]) -> None:
        """Unload ``key`` now, aborting its requests, then call ``then`` in a thread."""
        drain = self._drains.get(key)
        if drain is not None and not drain.unloading:
            drain.task.cancel()
        await self._engine.unload_adapter(key, force=True)
        await asyncio.to_thread(then)

    async def _unload_when_unused(self, key: AdapterKey) -> None:
        await self._registry.unused(key)
        self._drains[key].unloading = True
        await self._engine.unload_adapter(key)
        self._registry.drained(key)
