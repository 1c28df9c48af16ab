"""From a package's place to the engine, by way of a copy where the place is an object store."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

from typing_extensions import override

from adapters.errors import PackageChangedError, PackageError
from server.adapter_key import AdapterKey
from server.catalog.store import AdapterStore
from server.engine.ipc.client import EngineClient
from server.engine.messages import AdapterLoaded


class Load(Protocol):
    """As ``EngineClient.load_adapter``, which it comes down to."""

    async def __call__(self, key: AdapterKey, path: Path, *others: Path, allow_noop: bool = False) -> AdapterLoaded:
        """Make the package in ``path``, or a combination of several, resident under ``key``."""
        ...


class PackageLoader(Load):
    """Makes versions resident in ``engine``."""

    def __init__(self, store: AdapterStore, engine: EngineClient) -> None:
        self._store = store
        self._engine = engine

    @override
    async def __call__(self, key: AdapterKey, path: Path, *others: Path, allow_noop: bool = False) -> AdapterLoaded:
        """Load the adopted package at ``path``, or combine several.

        Raises as ``EngineClient.load_adapter``, and StoreError. What turns out to be another than was kept is fetched
        once more where it is a copy. What cannot be read is read once more: if the disk was away for a moment, that is
        no fault of the package.
        """
        paths = (path, *others)
        with ExitStack() as held:
            for package in paths:
                held.enter_context(self._store.held(package))
                await self._store.run(self._store.fetch, package)
            try:
                return await self._engine.load_adapter(key, *paths, allow_noop=allow_noop)
            except PackageError as error:
                mended = [await self._mend(package) for package in paths]
                if not any(mended) and isinstance(error, PackageChangedError):
                    raise
            return await self._engine.load_adapter(key, *paths, allow_noop=allow_noop)

    async def _mend(self, package: Path) -> bool:
        await self._store.run(self._store.check, package)
        return await self._store.run(self._store.mend, package)
