"""Versions that the registry has let go: out of the engine, then off the disk. Asyncio-confined."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from pathlib import Path

from server.adapter_key import AdapterKey
from server.catalog.draining import Background, Draining
from server.catalog.registry import Registry
from server.catalog.store import AdapterStore, disk_errors
from server.catalog.versions import AdapterVersion
from server.errors import StoreError

logger = logging.getLogger(__name__)


class Removal:
    """Ends versions one by one. What the disk does not let go harms nobody: it stays, and ``undeleted`` says so."""

    def __init__(self, registry: Registry, store: AdapterStore, draining: Draining, background: Background) -> None:
        self._registry = registry
        self._store = store
        self._draining = draining
        self._background = background
        self._ends: dict[AdapterKey, asyncio.Task[None]] = {}
        self._undeleted: dict[AdapterKey, str] = {}

    def begin(self, version: AdapterVersion, *, force: bool) -> asyncio.Task[None]:
        """Unload ``version`` after its last request, or with ``force`` at once, and delete its files."""
        key = version.key
        if not force:
            self._draining.begin(key)  # now, so that it can be hastened
        end = self._ends[key] = self._background.spawn(self._unload_and_delete(version, force))
        end.add_done_callback(lambda _: self._ends.pop(key, None))
        return end

    async def hasten(self, version: AdapterVersion) -> None:
        """End the last requests of a version whose removal has begun, and wait until it is gone."""
        end = self._ends.get(version.key)
        await self._draining.force(version.key)
        if end is not None:
            await asyncio.wait([end])

    async def delete_files(self, key: AdapterKey, path: Path) -> None:
        """Delete a package that nothing needs any more."""
        await self._let_go(key, path, self._store.delete)

    async def return_files(self, key: AdapterKey, path: Path) -> None:
        """Undo the adoption of a package that is not served after all."""
        await self._let_go(key, path, self._store.undo_adopt)

    def undeleted(self, versions: Iterable[AdapterVersion]) -> list[str]:
        """Why files of ``versions``, which are gone, are still on the disk; empty when none are."""
        return [f"{v.key}: {self._undeleted[v.key]}" for v in versions if v.key in self._undeleted]

    async def _let_go(self, key: AdapterKey, path: Path, end: Callable[[Path], None]) -> None:
        try:
            with disk_errors():
                await asyncio.to_thread(end, path)
        except StoreError as error:
            self._undeleted[key] = f"its files are still there, in packages/{path.name}: {error}"
            logger.warning("the files of adapter %s remain in %s: %s", key, path, error)

    async def _unload_and_delete(self, version: AdapterVersion, force: bool) -> None:
        await (self._draining.force if force else self._draining.finish)(version.key)
        await self.delete_files(version.key, version.path)
        self._registry.deleted(version.key)
