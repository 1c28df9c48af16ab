"""Adapters coming and going while requests run: install, activate, roll back, remove.

Joins registry, store and engine; knows no HTTP. Asyncio-confined. Changes of one name happen one after another, and a
change that has begun is carried to its end even if its caller leaves: nothing is ever half installed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterable
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

from adapters.errors import AdapterError
from server.adapter_key import AdapterKey
from server.catalog.background import Background
from server.catalog.catalog import Catalog, Leftover
from server.catalog.changes import Changes
from server.catalog.content import AnyVocabulary, Content, ContentReader, Vocabulary, is_sound
from server.catalog.database.asking import ask
from server.catalog.draining import Draining
from server.catalog.events import Event
from server.catalog.following import Following
from server.catalog.guard import Guard
from server.catalog.observer import Action, LifecycleObserver
from server.catalog.registry import Registry
from server.catalog.removal import Removal
from server.catalog.residency import Residency
from server.catalog.store import AdapterStore, disk_errors
from server.catalog.versions import AdapterVersion, NameSettings, VersionHistory, VersionState
from server.engine.messages import AdapterLoaded
from server.errors import BudgetError, ConflictError, InvalidRequestError, StoreError, UnknownModelError

logger = logging.getLogger(__name__)
T = TypeVar("T")
_SERVED = (VersionState.LIVE, VersionState.CANARY, VersionState.SHADOW, VersionState.CANDIDATE)
Check = Callable[[VersionHistory], None]
Uploaded = Literal["load", "replace", "candidate", "restore", "unchanged"]


@dataclass(frozen=True)
class Activation:
    """``version`` is live now. ``replaced`` was before it (None: nothing was).

    Not ``changed``: ``version`` was live already.
    """

    version: AdapterVersion
    replaced: AdapterVersion | None = None
    changed: bool = True


@dataclass(frozen=True)
class Upload:
    """What became of an uploaded package, where it stood then, and which older versions were deleted for it.

    ``restore``: ``version``, which had failed, has its files again, and is what it was before.
    """

    version: AdapterVersion
    action: Uploaded
    state: VersionState
    evicted: tuple[AdapterVersion, ...] = ()


class _OvertakenError(Exception):
    """Another server let the name serve the same content, while it was being loaded here."""


class AdapterLifecycle:
    """All changes of what a server serves. ``registry`` answers which version a request gets.

    Beyond ``max_versions`` of a name (0: no limit) the oldest that nobody uses are deleted with every upload.
    """

    def __init__(
        self,
        registry: Registry,
        catalog: Catalog,
        store: AdapterStore,
        residency: Residency,
        *,
        observer: LifecycleObserver | None = None,
        vocabulary: Vocabulary | None = None,
        max_versions: int = 0,
    ) -> None:
        self.registry = registry
        self.catalog = catalog
        self.store = store
        self.residency = residency
        self._observer = observer or LifecycleObserver()
        self._reader = ContentReader(residency.engine, vocabulary or AnyVocabulary())
        self._background = Background()
        self._max_versions = max_versions
        draining = Draining(registry, residency, self._background)
        self._draining = draining
        self._removal = Removal(registry, store, catalog, draining, self._background)
        self._following = Following(registry, residency, draining, self._removal, self._observer)
        self._changes = Changes(registry, catalog, residency, self._following)

    async def install(
        self, name: str, package: Path, *, activate: bool = True, allow_noop: bool = False
    ) -> AdapterVersion:
        """Serve the package in the quarantined directory ``package`` as ``name``; requests switch once it is resident.

        Unless ``activate`` it only becomes a candidate: resident, and served as ``name@version`` alone. Content that
        ``name`` serves already, or that is such a candidate, is not loaded again. The quarantined files are gone
        afterwards in any case. An adapter that answers exactly as the base does is refused unless ``allow_noop``.
        Raises AdapterError, InvalidRequestError, BudgetError, StoreError or EngineUnavailableError; everything is as
        before then.
        """
        return (await self.upload(name, package, activate=activate, replace=True, allow_noop=allow_noop)).version

    async def upload(
        self,
        name: str,
        package: Path,
        *,
        activate: bool = True,
        replace: bool = False,
        allow_noop: bool = False,
        guard: Guard | None = None,
    ) -> Upload:
        """As ``install``, saying what was done; ConflictError where ``name`` serves other content, unless ``replace``.

        A version of that content which failed is not added again: it gets the files, and is loaded.
        """
        work = self._upload(name, package, guard or Guard(), activate=activate, replace=replace, allow_noop=allow_noop)
        return await self._background.to_the_end(work)

    async def install_copy(
        self, name: str, source: Path, *, activate: bool = True, allow_noop: bool = False
    ) -> AdapterVersion:
        """As ``install``, for a directory or archive of the operator's, which is copied. Raises as ``install``."""
        package = await asyncio.to_thread(self.store.stage_copy, source)
        return await self.install(name, package, activate=activate, allow_noop=allow_noop)

    async def activate(
        self,
        name: str,
        number: int,
        *,
        expected_live: int | None = None,
        guard: Guard | None = None,
        action: Action = "activate",
        check: Check | None = None,
    ) -> Activation:
        """Let ``name`` serve another of its versions: a candidate, a canary or an older one. It ends all canaries.

        ``action`` says what that is called, ``check`` raises where it must not be after all. With ``expected_live`` (0:
        none) only if that is what it serves now, or if there is nothing to change; with a ``guard`` instead if that
        holds. Raises UnknownModelError, ConflictError, PreconditionFailedError, or as ``install``; everything is as
        before then, but that a version whose files cannot be loaded has failed (AdapterFailedError).
        """
        work = self._activate(name, number, guard or Guard(expected_live), action, check)
        return await self._background.to_the_end(work)

    async def rollback(
        self, name: str, number: int | None = None, *, expected_live: int | None = None, guard: Guard | None = None
    ) -> Activation:
        """Let ``name`` serve the version that was live before, or ``number``, which has been live. As ``activate``.

        Raises InvalidRequestError as well, when there is none to go back to.
        """
        return await self._background.to_the_end(self._rollback(name, number, guard or Guard(expected_live)))

    async def configure(
        self, name: str, settle: Callable[[NameSettings], NameSettings], *, guard: Guard | None = None
    ) -> bool:
        """Let the settings of ``name`` be what ``settle`` makes of them; False when they were that. As ``activate``."""
        return await self._background.to_the_end(self._changes.configure(name, settle, guard or Guard()))

    async def remove(self, name: str, *, force: bool = False, guard: Guard | None = None) -> list[AdapterVersion]:
        """Stop serving ``name`` and delete its versions, which are returned. New requests are refused at once.

        Running requests finish and the files go after the last one; with ``force`` they are aborted and all is gone
        on return, what was removed before and still finishes requests included. Files that the disk does not let go
        stay, see ``undeleted``. Raises UnknownModelError.
        """
        return await self._background.to_the_end(self._remove(name, force, guard or Guard()))

    async def remove_version(
        self, name: str, number: int, *, force: bool = False, guard: Guard | None = None
    ) -> AdapterVersion:
        """Delete a version that is not live, as ``remove`` does. Raises UnknownModelError, or ConflictError."""
        return await self._background.to_the_end(self._remove_version(name, number, force, guard or Guard()))

    def undeleted(self, versions: Iterable[AdapterVersion]) -> list[str]:
        """Why files of removed ``versions`` are still on the disk; empty when none are."""
        return self._removal.undeleted(versions)

    async def change(
        self,
        name: str,
        mutate: Callable[[VersionHistory], T],
        event: Event,
        *,
        guard: Guard | None = None,
        needs: Collection[int] = (),
    ) -> T:
        """Change what is durable of a name, and let it take effect. ``mutate`` may be called in any thread.

        Versions that the change ``needs`` are made resident first. Raises what ``mutate`` and ``guard`` raise,
        AdapterFailedError, UnknownModelError, or CatalogUnavailableError; everything is as before then.
        """
        work = self._changes.make(name, mutate, event, guard or Guard(), needs=needs)
        return await self._background.to_the_end(work)

    async def refresh(self, name: str) -> None:
        """Let what the catalog says of ``name`` now take effect here. Raises CatalogUnavailableError."""
        await self.follow(name, await ask(self.catalog.read, name))

    async def follow(self, name: str, history: VersionHistory) -> None:
        """Let what the catalog says of ``name`` take effect here, unless that has been done."""
        await self._background.to_the_end(self._changes.follow(name, history))

    async def sweep(self, leftover: Leftover) -> None:
        """Delete what a change left behind that nobody ends. Raises StoreError, or CatalogUnavailableError."""
        await self._background.to_the_end(self._removal.sweep(leftover))

    async def settle(self) -> None:
        """Wait until everything under way has ended: installs, drains, deletions, loads."""
        await self._background.settle()
        await self.residency.settle()

    async def close(self) -> None:
        """Give up everything under way."""
        await self.residency.close()
        await self._background.close()

    # ---- installing ----

    async def _upload(
        self, name: str, package: Path, guard: Guard, *, activate: bool, replace: bool, allow_noop: bool
    ) -> Upload:
        try:
            self.registry.check_new_name(name)
            with disk_errors():
                content = await asyncio.to_thread(self._reader.read, package)
            async with self._changes.of(name, guard):
                same = self._same_content(name, content, activate=activate)
                self._changes.check(name, guard, target=None if same is None else same.key.version)
                if activate and not replace:
                    self._check_free(name, content)
                if same is not None:
                    return await self._repeat(same, package, guard, activate=activate)
                with suppress(_OvertakenError):
                    return await self._add(name, content, guard, activate=activate, allow_noop=allow_noop)
            async with self._changes.of(name, guard):  # it follows what the other server did
                live = self.registry.live(name)
                return Upload(live, "unchanged", self.registry.state(live.key))
        except (AdapterError, BudgetError, StoreError) as error:
            self._observer.adapter_refused(error.code)
            logger.info("adapter %s refused: %s", name, error)
            raise
        finally:
            await asyncio.to_thread(self.store.discard, package)

    def _same_content(self, name: str, content: Content, *, activate: bool) -> AdapterVersion | None:
        """The live version of ``name``, else one that waits or has a share, else a failed one, of this content."""
        versions = self.registry.versions(name) if name in self.registry.known_names() else []
        same = [version for version in versions if content.is_of(version)]
        same.sort(key=lambda version: self.registry.serves(version.key))
        by_state = {self.registry.state(version.key): version for version in same}
        found = next((by_state[state] for state in _SERVED if state in by_state), None)
        failed = by_state.get(VersionState.FAILED)
        if found is None and failed is not None and (activate or self.registry.serves(failed.key)):
            return failed
        return found

    def _check_free(self, name: str, content: Content) -> None:
        """Raise ConflictError when ``name`` has a live version of other ``content``: an upload may be repeated."""
        live = self.registry.live_number(name)
        if live is None or content.is_of(self.registry.live(name)):
            return
        raise ConflictError(
            f"the adapter {name!r} exists (version {live}); to replace it, send PUT /v1/adapters/{name} or add "
            "?replace=true; to upload a candidate beside it, add ?activate=false",
            param="name",
            code="adapter_exists",
        )

    async def _repeat(self, same: AdapterVersion, package: Path, guard: Guard, *, activate: bool) -> Upload:
        """The upload of content that a version has: mend it if it needs that, and let the name serve it."""
        failed = self.registry.state(same.key) is VersionState.FAILED
        restored = failed or not await asyncio.to_thread(is_sound, same)
        if restored:
            same = await self._restore(same, package)
        if activate and self.registry.state(same.key) is not VersionState.LIVE:
            activation = await self._make_live(same, "replace", guard)
            return Upload(activation.version, "replace" if activation.replaced else "load", VersionState.LIVE)
        return Upload(same, "restore" if restored else "unchanged", self.registry.state(same.key))

    async def _restore(self, version: AdapterVersion, package: Path) -> AdapterVersion:
        """Give a version the files of ``package``, whose content is its own, and make it resident if it is not."""
        key, failed = version.key, self.registry.state(version.key) is VersionState.FAILED
        if await self._draining.cancel(key):
            self.registry.drained(key)
        arriving = await ask(self.catalog.reserve_package, key)
        try:
            path = await self.store.run(self.store.adopt, package, arriving)
            loaded = await self.residency.load(key, path, allow_noop=True, nbytes=version.nbytes)  # accepted before
        except BaseException:
            await self._removal.return_files(key, arriving)
            raise
        restored = replace(version, path=path)
        event = Event("restore", key.version)
        _, history = await self._changes.write(
            key.name, lambda history: history.move(restored), event, Guard(), arriving=(key, arriving)
        )
        await self._following.follow(key.name, history, resident=key)
        self.registry.healed(key)
        if failed:
            self._observer.adapter_loaded(loaded)
        await self._removal.delete_files(key, version.path)
        logger.info("adapter %s has its files again", key)
        return restored

    async def _add(self, name: str, content: Content, guard: Guard, *, activate: bool, allow_noop: bool) -> Upload:
        info = content.info
        with nullcontext() if activate else self.registry.room(name):
            key, package = await ask(self.catalog.reserve, name, info.digest)
            try:
                path = await self.store.run(self.store.adopt, info.path, package)
                loaded = await self.residency.load(key, path, allow_noop=allow_noop, nbytes=info.nbytes)
            except BaseException:
                await self._removal.return_files(key, package)
                raise
            version = self._version(key, path, content, loaded)
            return await self._keep(version, loaded, guard, activate=activate)

    def _version(self, key: AdapterKey, path: Path, content: Content, loaded: AdapterLoaded) -> AdapterVersion:
        return AdapterVersion(
            key=key,
            path=path,
            kind=loaded.kind,
            nbytes=loaded.nbytes,
            num_virtual_tokens=loaded.num_virtual_tokens,
            vocab_size=loaded.vocab_size,
            tokens=content.tokens,
            chat=content.chat,
            head=content.head,
            created=time.time(),
            manifest=content.info.manifest,
            warnings=(*loaded.warnings, *self._reader.warnings(content, loaded.token_ids)),
        )

    async def _keep(self, version: AdapterVersion, loaded: AdapterLoaded, guard: Guard, *, activate: bool) -> Upload:
        """Write down a version that is resident by now, and delete the oldest that nobody uses for it."""
        key = version.key

        def add(history: VersionHistory) -> tuple[AdapterVersion | None, list[AdapterVersion]]:
            live = history.get(history.live)
            if live is not None and live.has_content_of(version):
                raise _OvertakenError
            replaced = history.add(version, candidate=not activate)
            own, used = history.record.settings.retention, self.registry.in_use(key.name)
            most = self._max_versions if own is None else own
            evicted = history.superfluous(most, used) if most else []
            for old in evicted:
                history.forget(old.key.version)
            return replaced, evicted

        event = Event("upload", key.version, {"digest": key.digest, "candidate": not activate})
        arriving = (key, version.path.name)
        (replaced, evicted), history = await self._changes.write(key.name, add, event, guard, arriving=arriving)
        self._observer.adapter_loaded(loaded)
        await self._following.follow(key.name, history, action="replace", resident=key, ours=evicted)
        for old in evicted:
            logger.info("adapter %s deleted: there are more versions than are to be kept", old.key)
        if not activate:
            logger.info("adapter %s waits as a candidate", key)
        action: Uploaded = "candidate" if not activate else "replace" if replaced else "load"
        return Upload(version, action, self.registry.state(key), tuple(evicted))

    # ---- activating ----

    async def _activate(self, name: str, number: int, guard: Guard, action: Action, check: Check | None) -> Activation:
        async with self._changes.of(name, guard):
            version = self.registry.version(name, number)
            self._changes.check(name, guard, target=number)
            return await self._make_live(version, action, guard, check)

    async def _rollback(self, name: str, number: int | None, guard: Guard) -> Activation:
        async with self._changes.of(name, guard):
            self.registry.live(name)  # or there is nothing to go back from
            version = None if number is None else self.registry.version(name, number)
            if version is not None and self.registry.is_candidate(version.key):
                raise InvalidRequestError(
                    f"{version.key} has never been live; to activate it send PATCH /v1/adapters/{name}", param="version"
                )
            self._changes.check(name, guard, target=number)
            return await self._make_live(version or self.registry.before(name), "rollback", guard)

    async def _make_live(
        self, version: AdapterVersion, action: Action, guard: Guard, check: Check | None = None
    ) -> Activation:
        """Let its name serve a version that is kept; with the action ``rollback``, undo what came after it."""
        key = version.key
        if self.registry.state(key) is VersionState.LIVE:
            return Activation(version, changed=False)
        await self._following.make_resident(version)
        if self.registry.live_number(key.name) == key.version:  # it had failed
            logger.info("adapter %s is served again", key)
            return Activation(version)

        def switch(history: VersionHistory) -> AdapterVersion | None:
            if check is not None:
                check(history)
            if history.get(key.version) is None:
                raise UnknownModelError(f"{key} was deleted meanwhile")
            return history.roll_back(key.version) if action == "rollback" else history.activate(key.version)

        try:
            replaced, history = await self._changes.write(key.name, switch, Event(action, key.version), guard)
        except BaseException:
            self._following.let_go([version])
            raise
        await self._following.follow(key.name, history, action=action, resident=key)
        return Activation(version, replaced)

    # ---- removing ----

    async def _remove(self, name: str, force: bool, guard: Guard) -> list[AdapterVersion]:
        async with self._changes.of(name, guard):
            leaving = self.registry.leaving(name) if force else []
            versions: list[AdapterVersion] = []
            ends: list[asyncio.Task[None]] = []
            if name in self.registry.known_names() or not leaving:
                self.registry.versions(name)  # or there is nothing to remove
                self._changes.check(name, guard)
                mode = {"mode": "force" if force else "drain"}
                event = Event("remove", None, mode)
                versions, history = await self._changes.write(name, lambda history: history.remove(), event, guard)
                ends = await self._following.follow(name, history, action="remove", ours=versions, force=force)
            logger.info("adapter %s removed, %s", name, "by force" if force else "draining")
        if force:
            await asyncio.gather(*ends, *(self._removal.hasten(version) for version in leaving))
        return leaving + versions

    async def _remove_version(self, name: str, number: int, force: bool, guard: Guard) -> AdapterVersion:
        async with self._changes.of(name, guard):
            leaving = self.registry.leaving(name) if force else []
            version = next((v for v in leaving if v.key.version == number), None)
            if version is not None:
                await self._removal.hasten(version)
                return version
            self.registry.version(name, number)
            self._changes.check(name, guard)

            def forget(history: VersionHistory) -> AdapterVersion:
                if history.live == number:
                    raise ConflictError(
                        f"{name}@{number} is being served; activate another version first, or delete the whole adapter",
                        code="version_is_live",
                    )
                if history.get(number) is None:
                    raise UnknownModelError(f"{name}@{number} was deleted meanwhile")
                return history.forget(number)

            forgotten, history = await self._changes.write(name, forget, Event("remove_version", number), guard)
            ends = await self._following.follow(name, history, ours=[forgotten], force=force)
            logger.info("adapter %s removed, %s", forgotten.key, "by force" if force else "draining")
        if force:
            await asyncio.gather(*ends)
        return forgotten
