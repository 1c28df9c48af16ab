"""An engine without a model: loads and unloads are answered when a test says so, and memory has an end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

from typing_extensions import override

from adapters.errors import PackageError
from server.adapter_key import AdapterKey
from server.catalog.registry import Registry
from server.catalog.versions import AdapterVersion, NameRecord, VersionHistory
from server.engine.ipc.client import EngineClient
from server.engine.messages import AdapterLoaded, EngineInfo, EngineRequest, EngineStats, RequestOutput
from server.errors import ADAPTER_MEMORY, BudgetError, EngineUnavailableError


class ToyEngine(EngineClient):
    """``weights`` says what a package takes, by the name of its folder; one without a weight is broken."""

    def __init__(self, weights: Mapping[str, int], max_bytes: int = 0, *, by_hand: bool = False) -> None:
        self.weights = weights
        self.loads: list[AdapterKey] = []
        self.weigh: dict[AdapterKey, int] = {}
        self.in_use: Callable[[AdapterKey], bool] = lambda key: False
        self.waiting: dict[AdapterKey, asyncio.Future[None]] = {}  # loads and unloads that are not answered yet
        self._max_bytes = max_bytes
        self._by_hand = by_hand
        self._ready = True

    @property
    @override
    def ready(self) -> bool:
        return self._ready

    @property
    @override
    def unavailable(self) -> str:
        return "" if self._ready else "it is down"

    @property
    @override
    def info(self) -> EngineInfo:
        raise NotImplementedError

    @property
    @override
    def stats(self) -> EngineStats:
        raise NotImplementedError

    @override
    def submit(
        self,
        request: EngineRequest,
        on_end: Callable[[], None] = lambda: None,
        restart: Callable[[], bool] = lambda: False,
    ) -> AsyncIterator[RequestOutput]:
        raise NotImplementedError

    @property
    @override
    def resident(self) -> frozenset[AdapterKey]:
        return frozenset(self.weigh)

    async def start(self) -> None:
        self._ready = True

    async def close(self) -> None:
        """It dies: nothing is resident, and what is under way has failed."""
        self._ready = False
        self.weigh.clear()
        for waiting in self.waiting.values():
            if not waiting.done():
                waiting.set_exception(EngineUnavailableError("it died"))

    @override
    async def load_adapter(self, key: AdapterKey, path: Path, *others: Path, allow_noop: bool = False) -> AdapterLoaded:
        if not self._ready:
            raise EngineUnavailableError("it is down")
        self.loads.append(key)
        await self._turn(key)
        if not {path.name, *(other.name for other in others)} <= self.weights.keys():
            raise PackageError("it is broken")
        nbytes = sum(self.weights[package.name] for package in (path, *others))
        if self._max_bytes and sum(self.weigh.values()) + nbytes > self._max_bytes:
            raise BudgetError("there is no room", code=ADAPTER_MEMORY, nbytes=nbytes)
        assert key not in self.weigh, "one load for all"
        self.weigh[key] = nbytes
        return AdapterLoaded(key=key, kind="toy", nbytes=nbytes, num_virtual_tokens=0, seconds={"read": 0.0})

    @override
    async def unload_adapter(self, key: AdapterKey, *, force: bool = False) -> None:
        assert force or not self.in_use(key), "what runs is never evicted"
        try:
            await self._turn(key)
        except EngineUnavailableError:
            return
        self.weigh.pop(key, None)

    async def _turn(self, key: AdapterKey) -> None:
        while key in self.waiting:  # the load of what leaves comes first
            await asyncio.sleep(0)
        if not self._by_hand:
            await asyncio.sleep(0)
            return
        self.waiting[key] = asyncio.get_running_loop().create_future()
        try:
            await self.waiting[key]
        finally:
            del self.waiting[key]


def register(registry: Registry, name: str, nbytes: int, folder: str | None = None) -> AdapterKey:
    """A live version of ``name`` that is only stored, in a ``folder`` of the toy's."""
    key = AdapterKey(name, 1, name * 8)
    version = AdapterVersion(
        key=key, path=Path(folder or name), kind="toy", nbytes=nbytes, num_virtual_tokens=0, created=0.0
    )
    registry.adopt(name, VersionHistory(NameRecord(last=1, live=1), [version]))
    return key
