"""Lets adapter versions go: out of memory once nobody uses them. Asyncio-confined."""

from __future__ import annotations

import asyncio

from server.adapter_key import AdapterKey
from server.catalog.background import Background
from server.catalog.registry import Registry
from server.catalog.residency import Residency


class Draining:
    """The versions on their way out of memory. Until the engine is told, such a version can be kept."""

    def __init__(self, registry: Registry, residency: Residency, background: Background) -> None:
        self._registry = registry
        self._residency = residency
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
        await self._residency.unload(key, force=True)

    async def _unload_when_unused(self, key: AdapterKey) -> None:
        await self._registry.unused(key)
        self._unloading.add(key)
        await self._residency.unload(key)
        self._registry.drained(key)

    def _ended(self, key: AdapterKey) -> None:
        del self._tasks[key]
        self._unloading.discard(key)
