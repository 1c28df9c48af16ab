"""Versions that the registry has let go: out of the engine, then off the disk. Asyncio-confined."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from pathlib import Path

from server.adapter_key import AdapterKey
from server.catalog.background import Background
from server.catalog.catalog import Catalog, Leftover
from server.catalog.database.asking import ask
from server.catalog.draining import Draining
from server.catalog.registry import Registry
from server.catalog.store import AdapterStore, disk_errors
from server.catalog.versions import AdapterVersion
from server.errors import ServerError, StoreError

logger = logging.getLogger(__name__)


class Removal:
    """Ends versions one by one. What the disk does not let go harms nobody: it stays, and ``undeleted`` says so."""

    def __init__(
        self, registry: Registry, store: AdapterStore, catalog: Catalog, draining: Draining, background: Background
    ) -> None:
        self._registry = registry
        self._store = store
        self._catalog = catalog
        self._draining = draining
        self._background = background
        self._ends: dict[AdapterKey, asyncio.Task[None]] = {}
        self._undeleted: dict[AdapterKey, str] = {}

    def begin(self, version: AdapterVersion, *, force: bool, delete: bool = True) -> asyncio.Task[None]:
        """Unload ``version`` after its last request, or with ``force`` at once, and ``delete`` its files."""
        key = version.key
        if not force:
            self._draining.begin(key)  # now, so that it can be hastened
        end = self._ends[key] = self._background.spawn(self._unload_and_delete(version, force, delete))
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
        if await self._let_go(key, path):
            await self._note(path, self._catalog.deleted, path.name)

    async def return_files(self, key: AdapterKey, package: str) -> None:
        """Undo the reservation of a version, and of its files, that is not served after all."""
        path = self._store.place(package)
        if await self._let_go(key, path):
            await self._note(path, self._catalog.release, key, package)

    async def sweep(self, leftover: Leftover) -> None:
        """Delete files of a change that nobody ends. Raises StoreError, or CatalogUnavailableError."""
        with disk_errors():
            await self._store.run(self._store.delete, self._store.place(leftover.package))
        await ask(self._catalog.swept, leftover)

    def undeleted(self, versions: Iterable[AdapterVersion]) -> list[str]:
        """Why files of ``versions``, which are gone, are still on the disk; empty when none are."""
        return [f"{v.key}: {self._undeleted[v.key]}" for v in versions if v.key in self._undeleted]

    async def _let_go(self, key: AdapterKey, path: Path) -> bool:
        """Delete files; False when the disk did not let go of them, which is tried again later."""
        try:
            with disk_errors():
                await self._store.run(self._store.delete, path)
        except StoreError as error:
            self._undeleted[key] = f"its files are still there, in packages/{path.name}: {error}"
            logger.warning("the files of adapter %s remain in %s: %s", key, path, error)
            self._catalog.abandon(path.name)
            return False
        return True

    async def _note(self, path: Path, note: Callable[..., None], *arguments: object) -> None:
        """Tell the catalog of it; where it does not answer it is told later."""
        try:
            await ask(note, *arguments)
        except ServerError as error:
            logger.warning("the catalog has not been told that %s is gone: %s", path, error)
            self._catalog.abandon(path.name)

    async def _unload_and_delete(self, version: AdapterVersion, force: bool, delete: bool) -> None:
        await (self._draining.force if force else self._draining.finish)(version.key)
        if delete:
            await self.delete_files(version.key, version.path)
        self._registry.deleted(version.key)
