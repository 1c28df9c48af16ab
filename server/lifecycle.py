"""Adapters coming and going while requests run: install, activate, roll back, remove.

Joins registry, store and engine; knows no HTTP. Asyncio-confined. Changes of one name happen one after another, and a
change that has begun is carried to its end even if its caller leaves: nothing is ever half installed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Protocol
from weakref import WeakValueDictionary

from adapters.added_tokens import AddedToken, read_added_tokens
from adapters.errors import AdapterError
from adapters.inspection import PackageInfo, inspect_package
from server.background import Background
from server.draining import Drains
from server.engine.client import EngineClient
from server.engine.messages import AdapterLoaded
from server.errors import InvalidRequestError, UnknownModelError
from server.registry import AdapterKey, AdapterVersion, Registry
from server.store import AdapterStore

logger = logging.getLogger(__name__)

Tokens = tuple[AddedToken, ...]
NewTokens = Callable[[Tokens], Tokens]


class LifecycleObserver(Protocol):
    """Is told what happens, for metrics."""

    def adapter_loaded(self, loaded: AdapterLoaded, *, replaced: bool) -> None:
        """A version went into service."""

    def adapter_refused(self, code: str) -> None:
        """A package was refused."""

    def adapter_removed(self) -> None:
        """A name went out of service."""

    def retire(self, key: AdapterKey) -> None:
        """A version serves no new requests."""


class SilentObserver:
    """Tells nobody."""

    def adapter_loaded(self, loaded: AdapterLoaded, *, replaced: bool) -> None:
        """Ignored."""

    def adapter_refused(self, code: str) -> None:
        """Ignored."""

    def adapter_removed(self) -> None:
        """Ignored."""

    def retire(self, key: AdapterKey) -> None:
        """Ignored."""


def _no_tokens(tokens: Tokens) -> Tokens:
    return ()


class AdapterLifecycle:
    """All changes of what a server serves. ``registry`` answers which version a request gets.

    ``new_tokens`` tells which of a package's added tokens the base's tokenizer does not have, or raises AdapterError.
    """

    def __init__(
        self,
        registry: Registry,
        store: AdapterStore,
        engine: EngineClient,
        observer: LifecycleObserver | None = None,
        new_tokens: NewTokens = _no_tokens,
    ) -> None:
        self.registry = registry
        self.store = store
        self._engine = engine
        self._observer: LifecycleObserver = observer or SilentObserver()
        self._new_tokens = new_tokens
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._background = Background()
        self._drains = Drains(registry, engine, self._background)
        known = [version.path for name in registry.names() for version in registry.versions(name)]
        store.sweep(known)

    async def install(self, name: str, package: Path, *, allow_noop: bool = False) -> AdapterVersion:
        """Serve the package in the quarantined directory ``package`` as ``name``; requests switch once it is resident.

        Content that ``name`` serves already changes nothing and returns the version there is. The quarantined files
        are gone afterwards in any case. An adapter that answers exactly as the base does is refused unless
        ``allow_noop``. Raises AdapterError, InvalidRequestError or EngineUnavailableError;
        everything is as before then.
        """
        return await self._background.to_the_end(self._install(name, package, allow_noop))

    async def install_copy(self, name: str, source: Path, *, allow_noop: bool = False) -> AdapterVersion:
        """As ``install``, for a directory or archive of the operator's, which is copied. Raises as ``install``."""
        package = await asyncio.to_thread(self.store.bring_in, source)
        return await self.install(name, package, allow_noop=allow_noop)

    async def activate(self, name: str, number: int) -> AdapterVersion:
        """Let ``name`` serve another of its versions. Raises UnknownModelError, or as ``install``."""
        return await self._background.to_the_end(self._activate(name, number))

    async def rollback(self, name: str) -> AdapterVersion:
        """Let ``name`` serve the version before the live one. Raises UnknownModelError, or InvalidRequestError."""
        live = self.registry.live(name).key.version
        older = [v.key.version for v in self.registry.versions(name) if v.key.version < live]
        if not older:
            raise InvalidRequestError(f"{name!r} has no version before {live} to go back to")
        return await self.activate(name, max(older))

    async def remove(self, name: str, *, force: bool = False) -> list[AdapterVersion]:
        """Stop serving ``name`` and delete its versions, which are returned. New requests are refused at once.

        Running requests finish and the files go after the last one; with ``force`` they are aborted and all is gone
        on return. Raises UnknownModelError.
        """
        return await self._background.to_the_end(self._remove(name, force))

    async def remove_version(self, name: str, number: int) -> None:
        """Delete a version that is not live. Raises UnknownModelError, or InvalidRequestError for the live one."""
        await self._background.to_the_end(self._remove_version(name, number))

    async def settle(self) -> None:
        """Wait until everything under way has ended: installs, drains, deletions."""
        await self._background.settle()

    async def close(self) -> None:
        """Give up everything under way."""
        await self._background.close()

    # ---- installing ----

    async def _install(self, name: str, package: Path, allow_noop: bool) -> AdapterVersion:
        try:
            self.registry.check_new_name(name)
            info = await asyncio.to_thread(inspect_package, package)
            tokens = await asyncio.to_thread(self._read_tokens, info)
            async with self._lock(name):
                return self._serving(name, info.digest, tokens) or await self._add(name, info, tokens, allow_noop)
        except AdapterError as error:
            self._observer.adapter_refused(error.code)
            logger.info("adapter %s refused: %s", name, error)
            raise
        finally:
            await asyncio.to_thread(self.store.discard, package)

    def _serving(self, name: str, digest: str, tokens: Tokens) -> AdapterVersion | None:
        """The live version of ``name`` if its content is this one."""
        with contextlib.suppress(UnknownModelError):
            live = self.registry.live(name)
            return live if (live.key.digest, live.tokens) == (digest, tokens) else None
        return None

    async def _add(self, name: str, info: PackageInfo, tokens: Tokens, allow_noop: bool) -> AdapterVersion:
        key = self.registry.reserve(name, info.digest)
        path: Path | None = None
        try:
            path = await asyncio.to_thread(self.store.adopt, info.path)
            loaded = await self._engine.load_adapter(key, path, allow_noop=allow_noop)
        except BaseException:
            self.registry.release(key)
            if path is not None:
                await asyncio.to_thread(self.store.delete, path)
            raise
        version = AdapterVersion(
            key=key,
            path=path,
            kind=loaded.kind,
            nbytes=loaded.nbytes,
            num_virtual_tokens=loaded.num_virtual_tokens,
            vocab_size=loaded.vocab_size,
            tokens=tokens,
            created=time.time(),
            manifest=info.manifest,
            warnings=tuple(loaded.warnings),
        )
        self._put_in_service(self.registry.commit(version), version, loaded)
        return version

    def _read_tokens(self, info: PackageInfo) -> Tokens:
        named = tuple(info.manifest.added_tokens) if info.manifest is not None else ()
        return self._new_tokens(read_added_tokens(info.path, named))

    def _put_in_service(
        self, replaced: AdapterVersion | None, version: AdapterVersion, loaded: AdapterLoaded | None
    ) -> None:
        """Tell of a flip that has happened, and let the replaced version go in the background."""
        logger.info("adapter %s in service, before it: %s", version.key, replaced.key if replaced else None)
        if loaded is not None:
            self._observer.adapter_loaded(loaded, replaced=replaced is not None)
        if replaced is not None:
            self._observer.retire(replaced.key)
            self._drains.begin(replaced.key)

    # ---- activating ----

    async def _activate(self, name: str, number: int) -> AdapterVersion:
        async with self._lock(name):
            version = self.registry.version(name, number)
            if version.key == self.registry.live(name).key:
                return version
            loaded = await self._make_resident(version)
            self._put_in_service(self.registry.activate(version.key), version, loaded)
            return version

    async def _make_resident(self, version: AdapterVersion) -> AdapterLoaded | None:
        """Load a version, unless it is draining and can be kept; returns the engine's reply if it was loaded."""
        if await self._drains.call_back(version.key):
            return None
        return await self._engine.load_adapter(version.key, version.path, allow_noop=True)  # accepted before

    # ---- removing ----

    async def _remove(self, name: str, force: bool) -> list[AdapterVersion]:
        async with self._lock(name):
            versions = self.registry.remove(name)
            self._observer.adapter_removed()
            logger.info("adapter %s removed, %s", name, "by force" if force else "draining")
            ends = [self._end(version, force) for version in versions]
        if force:
            await asyncio.gather(*ends)
        return versions

    async def _remove_version(self, name: str, number: int) -> None:
        async with self._lock(name):
            version = self.registry.version(name, number)
            if version.key == self.registry.live(name).key:
                raise InvalidRequestError(f"{version.key} is being served; activate another version first")
            self.registry.forget_version(version.key)
            self._end(version, force=False)

    def _end(self, version: AdapterVersion, force: bool) -> asyncio.Task[None]:
        """Unload a version that the registry has forgotten, and delete its files."""
        self._observer.retire(version.key)
        delete = partial(self.store.delete, version.path)
        end = self._drains.force if force else self._drains.finish
        return self._background.spawn(end(version.key, delete))

    def _lock(self, name: str) -> asyncio.Lock:
        return self._locks.setdefault(name, asyncio.Lock())
