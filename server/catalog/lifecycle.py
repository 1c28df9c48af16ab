"""Adapters coming and going while requests run: install, activate, roll back, remove.

Joins registry, store and engine; knows no HTTP. Asyncio-confined. Changes of one name happen one after another, and a
change that has begun is carried to its end even if its caller leaves: nothing is ever half installed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, Protocol
from weakref import WeakValueDictionary

from adapters.errors import AdapterError
from adapters.package.added_tokens import AddedToken, read_added_tokens
from adapters.package.chat_template import NO_CHAT, PackageChat, read_chat
from adapters.package.inspection import PackageInfo, inspect_package
from server.adapter_key import AdapterKey
from server.catalog.draining import Background, Draining
from server.catalog.registry import Registry
from server.catalog.store import AdapterStore
from server.catalog.versions import AdapterVersion, VersionState
from server.engine.ipc.client import EngineClient
from server.engine.messages import AdapterLoaded
from server.errors import ConflictError, InvalidRequestError

logger = logging.getLogger(__name__)
Tokens = tuple[AddedToken, ...]
Action = Literal["load", "replace", "activate", "rollback", "remove"]


class LifecycleObserver:
    """Is told what happens; this one ignores it."""

    def adapter_loaded(self, loaded: AdapterLoaded) -> None:
        """A version became resident: one that goes into service, or a candidate."""

    def name_changed(self, action: Action) -> None:
        """What a name serves changed: by an upload (a first one: load), an activation, a rollback, or its removal."""

    def adapter_refused(self, code: str) -> None:
        """A package was refused."""

    def retire(self, key: AdapterKey) -> None:
        """A version serves no new requests."""


@dataclass(frozen=True)
class Activation:
    """``version`` is live now. ``replaced`` was before it (None: nothing was).

    Not ``changed``: ``version`` was live already.
    """

    version: AdapterVersion
    replaced: AdapterVersion | None = None
    changed: bool = True


class Vocabulary(Protocol):
    """The tokenizer of the base, as far as packages must fit it."""

    def new_tokens(self, tokens: Tokens) -> Tokens:
        """Those of a package's added ``tokens`` that it does not have. Raises AdapterError."""
        ...

    def check_special_tokens(self, recorded: Mapping[str, str | list[str]]) -> None:
        """Raise AdapterError when a package was trained with other special tokens, by role."""
        ...

    def fit_chat(self, chat: PackageChat, tokens: Tokens, base_ends: Collection[int]) -> PackageChat:
        """What of a package's ``chat`` is served beside the base's end tokens. Raises EngineUnavailableError."""
        ...


class _AnyVocabulary:
    def new_tokens(self, tokens: Tokens) -> Tokens:
        return ()

    def check_special_tokens(self, recorded: Mapping[str, str | list[str]]) -> None:
        pass

    def fit_chat(self, chat: PackageChat, tokens: Tokens, base_ends: Collection[int]) -> PackageChat:
        return NO_CHAT


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
        self._observer = observer or LifecycleObserver()
        self._vocabulary: Vocabulary = vocabulary or _AnyVocabulary()
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._background = Background()
        self._draining = Draining(registry, engine, self._background)
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
        package = await asyncio.to_thread(self.store.stage_copy, source)
        return await self.install(name, package, activate=activate, allow_noop=allow_noop)

    async def activate(self, name: str, number: int, *, expected_live: int | None = None) -> Activation:
        """Let ``name`` serve another of its versions, a candidate or an older one.

        With ``expected_live`` (0: none) only if that is what it serves now, or if there is nothing to change. Raises
        UnknownModelError, ConflictError, or as ``install``; everything is as before then.
        """
        return await self._background.to_the_end(self._activate(name, number, expected_live))

    async def rollback(self, name: str, number: int | None = None, *, expected_live: int | None = None) -> Activation:
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
            chat = await asyncio.to_thread(self._read_chat, info, tokens)
            async with self._lock(name):
                if (same := self._resident(name, info.digest, tokens, chat)) is None:
                    return await self._add(name, info, tokens, chat, activate=activate, allow_noop=allow_noop)
                if activate:
                    await self._make_live(same, "replace")
                return same
        except AdapterError as error:
            self._observer.adapter_refused(error.code)
            logger.info("adapter %s refused: %s", name, error)
            raise
        finally:
            await asyncio.to_thread(self.store.discard, package)

    def _resident(self, name: str, digest: str, tokens: Tokens, chat: PackageChat) -> AdapterVersion | None:
        """The live version of ``name``, else a candidate, whose content is this one."""
        versions = self.registry.versions(name) if name in self.registry.known_names() else []
        content = (digest, tokens, chat)
        same = [version for version in versions if (version.key.digest, version.tokens, version.chat) == content]
        by_state = {self.registry.state(version.key): version for version in same}
        return by_state.get(VersionState.LIVE) or by_state.get(VersionState.CANDIDATE)

    async def _add(
        self, name: str, info: PackageInfo, tokens: Tokens, chat: PackageChat, *, activate: bool, allow_noop: bool
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
            chat=chat,
            created=time.time(),
            manifest=info.manifest,
            warnings=(*loaded.warnings, *chat.warnings),
        )
        self._observer.adapter_loaded(loaded)
        replaced = self.registry.commit(version)
        if activate:
            self._went_live(version, replaced, "replace")
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

    def _read_chat(self, info: PackageInfo, tokens: Tokens) -> PackageChat:
        """What it brings for conversations, as far as it is served."""
        ends = self._engine.info.eos_token_ids if self._engine.ready else ()  # which then refuses the package
        return self._vocabulary.fit_chat(read_chat(info.path), tokens, ends)

    # ---- activating ----

    async def _activate(self, name: str, number: int, expected_live: int | None) -> Activation:
        async with self._lock(name):
            version = self.registry.version(name, number)
            self._check_expected(name, expected_live, target=number)
            return await self._make_live(version, "activate")

    async def _rollback(self, name: str, number: int | None, expected_live: int | None) -> Activation:
        async with self._lock(name):
            self.registry.live(name)  # or there is nothing to go back from
            version = None if number is None else self.registry.version(name, number)
            if version is not None and self.registry.state(version.key) is VersionState.CANDIDATE:
                raise InvalidRequestError(
                    f"{version.key} has never been live; to activate it send PATCH /v1/adapters/{name}", param="version"
                )
            self._check_expected(name, expected_live, target=number)
            return await self._make_live(version or self.registry.before(name), "rollback")

    async def _make_live(self, version: AdapterVersion, action: Action) -> Activation:
        """Let its name serve a version that is kept; with the action ``rollback``, undo what came after it."""
        if self.registry.state(version.key) is VersionState.LIVE:
            return Activation(version, changed=False)
        await self._make_resident(version)
        replaced = self.registry.activate(version.key, back=action == "rollback")
        self._went_live(version, replaced, action)
        return Activation(version, replaced)

    async def _make_resident(self, version: AdapterVersion) -> None:
        """Load a version, unless it is draining and can be kept."""
        if await self._draining.cancel(version.key):
            return
        candidate = self.registry.state(version.key) is VersionState.CANDIDATE
        loaded = await self._engine.load_adapter(version.key, version.path, allow_noop=True)  # accepted before
        if not candidate:  # a candidate was only asked whether it is resident still
            self._observer.adapter_loaded(loaded)

    def _went_live(self, version: AdapterVersion, replaced: AdapterVersion | None, action: Action) -> None:
        """Tell of it, and let the replaced version go in the background."""
        logger.info("adapter %s in service, before it: %s", version.key, replaced.key if replaced else None)
        self._observer.name_changed("load" if replaced is None else action)
        if replaced is not None:
            self._observer.retire(replaced.key)
            self._draining.begin(replaced.key)

    def _check_expected(self, name: str, expected_live: int | None, *, target: int | None = None) -> None:
        """Raise ConflictError unless ``name`` serves ``expected_live`` (0: nothing; None: whatever it is).

        A ``target`` that it serves already is fine too: the call was repeated.
        """
        live = self.registry.live(name).key.version if name in self.registry.names() else 0
        if expected_live in (None, live) or (live and live == target):
            return
        serves = f"{name!r} serves version {live}" if live else f"{name!r} serves no version"
        wanted = f"not {expected_live}" if expected_live else "and was expected to serve none"
        raise ConflictError(
            f"{serves}, {wanted}: it was changed meanwhile. Look at GET /v1/adapters/{name} before you decide again",
            param="expected_live",
            code="live_version_changed",
        )

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
        await (self._draining.force if force else self._draining.finish)(version.key, delete)
        self.registry.deleted(version.key)

    def _lock(self, name: str) -> asyncio.Lock:
        return self._locks.setdefault(name, asyncio.Lock())
