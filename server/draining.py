"""Lets adapter versions go: out of the engine once nobody uses them, then perhaps off the disk. Asyncio-confined."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from server.background import Background
from server.engine.client import EngineClient
from server.registry import AdapterKey, Registry


@dataclass(eq=False)
class _Drain:
    """One version on its way out. Until ``unloading`` is set it can be called back."""

    task: asyncio.Task[None]
    unloading: bool = False


class Drains:
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
