"""Adapters coming and going while requests run: install, activate, roll back, remove.

Joins registry, store and engine; knows no HTTP. Asyncio-confined. Changes of one name happen one after another, and a
change that has begun is carried to its end even if its caller leaves: nothing is ever half installed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import TypeVar

from server.catalog.activating import Activating, Activation, Check
from server.catalog.background import Background
from server.catalog.catalog import Catalog, Leftover
from server.catalog.changes import Changes
from server.catalog.content import AnyVocabulary, ContentReader, Vocabulary
from server.catalog.database.asking import ask
from server.catalog.draining import Draining
from server.catalog.events import Event
from server.catalog.following import Following
from server.catalog.guard import Guard
from server.catalog.installing import Installing, Upload
from server.catalog.observer import Action, LifecycleObserver
from server.catalog.registry import Registry
from server.catalog.removal import Removal
from server.catalog.residency import Residency
from server.catalog.store import AdapterStore
from server.catalog.versions import AdapterVersion, NameSettings, VersionHistory
from server.errors import ConflictError, InvalidRequestError, UnknownModelError

logger = logging.getLogger(__name__)
T = TypeVar("T")


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
        self._background = Background()
        draining = Draining(registry, residency, self._background)
        self._removal = Removal(registry, store, catalog, draining, self._background)
        self._following = Following(registry, residency, draining, self._removal, self._observer)
        self._changes = Changes(registry, catalog, residency, self._following)
        self._activating = Activating(registry, self._following, self._changes)
        self._installing = Installing(
            registry=registry,
            catalog=catalog,
            store=store,
            residency=residency,
            reader=ContentReader(residency.engine, vocabulary or AnyVocabulary()),
            draining=draining,
            removal=self._removal,
            following=self._following,
            changes=self._changes,
            activating=self._activating,
            observer=self._observer,
            max_versions=max_versions,
        )

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
        work = self._installing.upload(
            name, package, guard or Guard(), activate=activate, replace=replace, allow_noop=allow_noop
        )
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

    # ---- activating ----

    async def _activate(self, name: str, number: int, guard: Guard, action: Action, check: Check | None) -> Activation:
        async with self._changes.of(name, guard):
            version = self.registry.version(name, number)
            self._changes.check(name, guard, target=number)
            return await self._activating.make_live(version, action, guard, check)

    async def _rollback(self, name: str, number: int | None, guard: Guard) -> Activation:
        async with self._changes.of(name, guard):
            self.registry.live(name)  # or there is nothing to go back from
            version = None if number is None else self.registry.version(name, number)
            if version is not None and self.registry.is_candidate(version.key):
                raise InvalidRequestError(
                    f"{version.key} has never been live; to activate it send PATCH /v1/adapters/{name}", param="version"
                )
            self._changes.check(name, guard, target=number)
            return await self._activating.make_live(version or self.registry.before(name), "rollback", guard)

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
