"""Adapters coming and going while requests run: install, activate, roll back, remove.

Joins registry, store and engine; knows no HTTP. Asyncio-confined. Changes of one name happen one after another, and a
change that has begun is carried to its end even if its caller leaves: nothing is ever half installed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
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
from server.errors import ConflictError, InvalidRequestError
from server.flips import Flip, Flips
from server.lifecycle_observer import LifecycleObserver, SilentObserver
from server.registry import AdapterVersion, Registry, VersionState
from server.store import AdapterStore

logger = logging.getLogger(__name__)

Tokens = tuple[AddedToken, ...]


class Vocabulary(Protocol):
    """The tokenizer of the base, as far as packages must fit it."""

    def new_tokens(self, tokens: Tokens) -> Tokens:
        """Those of a package's added ``tokens`` that it does not have. Raises AdapterError."""
        ...

    def check_special_tokens(self, recorded: Mapping[str, str | list[str]]) -> None:
        """Raise AdapterError when a package was trained with other special tokens, by role."""
        ...


class _AnyVocabulary:
    def new_tokens(self, tokens: Tokens) -> Tokens:
        return ()

    def check_special_tokens(self, recorded: Mapping[str, str | list[str]]) -> None:
        pass


class AdapterLifecycle:
    """All changes of what a server serves. ``registry`` answers which version a request gets."""

    def __init__(
        self,
        registry: Registry,
        store: AdapterStore,
        engine: EngineClient,
        observer: LifecycleObserver | None = None,
        vocabulary: Vocabulary | None = None,
    ) -> None:
        self.registry = registry
        self.store = store
        self._engine = engine
        self._observer: LifecycleObserver = observer or SilentObserver()
        self._vocabulary: Vocabulary = vocabulary or _AnyVocabulary()
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._background = Background()
        self._drains = Drains(registry, engine, self._background)
        self._flips = Flips(registry, engine, self._drains, self._observer)
        known = [version.path for name in registry.known_names() for version in registry.versions(name)]
        store.sweep(known)

    async def install(
        self, name: str, package: Path, *, activate: bool = True, allow_noop: bool = False
    ) -> AdapterVersion:
        """Serve the package in the quarantined directory ``package`` as ``name``; requests switch once it is resident.

        Unless ``activate`` it only becomes a candidate: resident, and served as ``name@version`` alone. Content that
        ``name`` serves already, or that is such a candidate, is not loaded again. The quarantined files are gone
        afterwards in any case. An adapter that answers exactly as the base does is refused unless ``allow_noop``.
        Raises AdapterError, InvalidRequestError or EngineUnavailableError; everything is as before then.
        """
        return await self._background.to_the_end(self._install(name, package, activate, allow_noop))

    async def install_copy(
        self, name: str, source: Path, *, activate: bool = True, allow_noop: bool = False
    ) -> AdapterVersion:
        """As ``install``, for a directory or archive of the operator's, which is copied. Raises as ``install``."""
        package = await asyncio.to_thread(self.store.bring_in, source)
        return await self.install(name, package, activate=activate, allow_noop=allow_noop)

    async def activate(self, name: str, number: int, *, expected_live: int | None = None) -> Flip:
        """Let ``name`` serve another of its versions, a candidate or an older one.

        With ``expected_live`` (0: none) only if that is what it serves now, or if there is nothing to change. Raises
        UnknownModelError, ConflictError, or as ``install``; everything is as before then.
        """
        return await self._background.to_the_end(self._activate(name, number, expected_live))

    async def rollback(self, name: str, number: int | None = None, *, expected_live: int | None = None) -> Flip:
        """Let ``name`` serve the version that was live before, or ``number``, which has been live. As ``activate``.

        Raises InvalidRequestError as well, when there is none to go back to.
        """
        return await self._background.to_the_end(self._rollback(name, number, expected_live))

    async def remove(self, name: str, *, force: bool = False) -> list[AdapterVersion]:
        """Stop serving ``name`` and delete its versions, which are returned. New requests are refused at once.

        Running requests finish and the files go after the last one; with ``force`` they are aborted and all is gone
        on return. Raises UnknownModelError.
        """
        return await self._background.to_the_end(self._remove(name, force))

    async def remove_version(self, name: str, number: int, *, force: bool = False) -> AdapterVersion:
        """Delete a version that is not live, as ``remove`` does. Raises UnknownModelError, or ConflictError."""
        return await self._background.to_the_end(self._remove_version(name, number, force))

    async def settle(self) -> None:
        """Wait until everything under way has ended: installs, drains, deletions."""
        await self._background.settle()

    async def close(self) -> None:
        """Give up everything under way."""
        await self._background.close()

    # ---- installing ----

    async def _install(self, name: str, package: Path, activate: bool, allow_noop: bool) -> AdapterVersion:
        try:
            self.registry.check_new_name(name)
            info = await asyncio.to_thread(inspect_package, package)
            tokens = await asyncio.to_thread(self._read_tokens, info)
            async with self._lock(name):
                if (same := self._resident(name, info.digest, tokens)) is None:
                    return await self._add(name, info, tokens, activate=activate, allow_noop=allow_noop)
                if activate:
                    await self._flips.flip(same, "replace")
                return same
        except AdapterError as error:
            self._observer.adapter_refused(error.code)
            logger.info("adapter %s refused: %s", name, error)
            raise
        finally:
            await asyncio.to_thread(self.store.discard, package)

    def _resident(self, name: str, digest: str, tokens: Tokens) -> AdapterVersion | None:
        """The live version of ``name``, else a candidate, whose content is this one."""
        versions = self.registry.versions(name) if name in self.registry.known_names() else []
        same = [version for version in versions if (version.key.digest, version.tokens) == (digest, tokens)]
        by_state = {self.registry.state(version.key): version for version in same}
        return by_state.get(VersionState.LIVE) or by_state.get(VersionState.CANDIDATE)

    async def _add(
        self, name: str, info: PackageInfo, tokens: Tokens, *, activate: bool, allow_noop: bool
    ) -> AdapterVersion:
        key = self.registry.reserve(name, info.digest, candidate=not activate)
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
        self._observer.adapter_loaded(loaded)
        replaced = self.registry.commit(version)
        if activate:
            self._flips.flipped(version, replaced, "replace")
        else:
            logger.info("adapter %s waits as a candidate", key)
        return version

    def _read_tokens(self, info: PackageInfo) -> Tokens:
        """What its tokens are beside the base's, once both tokenizers are known to agree. Raises AdapterError."""
        named: Tokens = ()
        if info.manifest is not None:
            if info.manifest.base.fingerprint == self._engine.info.base_fingerprint:  # or the base is refused by name
                self._vocabulary.check_special_tokens(info.manifest.special_tokens)
            named = tuple(info.manifest.added_tokens)
        return self._vocabulary.new_tokens(read_added_tokens(info.path, named))

    # ---- activating ----

    async def _activate(self, name: str, number: int, expected_live: int | None) -> Flip:
        async with self._lock(name):
            version = self.registry.version(name, number)
            self._flips.check_expected(name, expected_live, target=number)
            return await self._flips.flip(version, "activate")

    async def _rollback(self, name: str, number: int | None, expected_live: int | None) -> Flip:
        async with self._lock(name):
            self.registry.live(name)  # or there is nothing to go back from
            version = None if number is None else self.registry.version(name, number)
            if version is not None and self.registry.state(version.key) is VersionState.CANDIDATE:
                raise InvalidRequestError(
                    f"{version.key} has never been live; to activate it send PATCH /v1/adapters/{name}", param="version"
                )
            self._flips.check_expected(name, expected_live, target=number)
            return await self._flips.flip(version or self.registry.before(name), "rollback")

    # ---- removing ----

    async def _remove(self, name: str, force: bool) -> list[AdapterVersion]:
        async with self._lock(name):
            served = name in self.registry.names()
            versions = self.registry.remove(name)
            if served:
                self._observer.name_changed("remove")
            logger.info("adapter %s removed, %s", name, "by force" if force else "draining")
            ends = [self._end(version, force) for version in versions]
        if force:
            await asyncio.gather(*ends)
        return versions

    async def _remove_version(self, name: str, number: int, force: bool) -> AdapterVersion:
        async with self._lock(name):
            version = self.registry.version(name, number)
            if self.registry.state(version.key) is VersionState.LIVE:
                raise ConflictError(
                    f"{version.key} is being served; activate another version first, or delete the whole adapter",
                    code="version_is_live",
                )
            self.registry.forget_version(version.key)
            logger.info("adapter %s removed, %s", version.key, "by force" if force else "draining")
            end = self._end(version, force)
        if force:
            await end
        return version

    def _end(self, version: AdapterVersion, force: bool) -> asyncio.Task[None]:
        """Unload a version that the registry has let go, and delete its files."""
        self._observer.retire(version.key)
        return self._background.spawn(self._unload_and_delete(version, force))

    async def _unload_and_delete(self, version: AdapterVersion, force: bool) -> None:
        delete = partial(self.store.delete, version.path)
        await (self._drains.force if force else self._drains.finish)(version.key, delete)
        self.registry.deleted(version.key)

    def _lock(self, name: str) -> asyncio.Lock:
        return self._locks.setdefault(name, asyncio.Lock())
