"""From a package in quarantine to a version that is resident and served, or waits for that. Asyncio-confined."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from adapters.errors import AdapterError
from server.adapter_key import AdapterKey
from server.catalog.activating import Activating
from server.catalog.catalog import Catalog
from server.catalog.changes import Changes
from server.catalog.content import Content, ContentReader, is_sound
from server.catalog.database.asking import ask
from server.catalog.draining import Draining
from server.catalog.events import Event
from server.catalog.following import Following
from server.catalog.guard import Guard
from server.catalog.observer import LifecycleObserver
from server.catalog.registry import Registry
from server.catalog.removal import Removal
from server.catalog.residency import Residency
from server.catalog.store import AdapterStore, disk_errors
from server.catalog.versions import AdapterVersion, VersionHistory, VersionState
from server.engine.messages import AdapterLoaded
from server.errors import BudgetError, ConflictError, StoreError
from server.traces import part

logger = logging.getLogger(__name__)
_SERVED = (VersionState.LIVE, VersionState.CANARY, VersionState.SHADOW, VersionState.CANDIDATE)
Uploaded = Literal["load", "replace", "candidate", "restore", "unchanged"]


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


@dataclass(frozen=True)
class Installing:
    """Adds versions, and mends those that are uploaded again, with what the changes of a lifecycle work with."""

    registry: Registry
    catalog: Catalog
    store: AdapterStore
    residency: Residency
    reader: ContentReader
    draining: Draining
    removal: Removal
    following: Following
    changes: Changes
    activating: Activating
    observer: LifecycleObserver
    max_versions: int

    async def upload(
        self, name: str, package: Path, guard: Guard, *, activate: bool, replace: bool, allow_noop: bool
    ) -> Upload:
        """Serve the quarantined ``package`` as ``name``; see ``AdapterLifecycle.install`` and ``upload``."""
        try:
            self.registry.check_new_name(name)
            with disk_errors(), part("verify"):
                content = await asyncio.to_thread(self.reader.read, package)
            async with self.changes.of(name, guard):
                same = self._same_content(name, content, activate=activate)
                self.changes.check(name, guard, target=None if same is None else same.key.version)
                if activate and not replace:
                    self._check_free(name, content)
                if same is not None:
                    return await self._repeat(same, package, guard, activate=activate)
                with suppress(_OvertakenError):
                    return await self._add(name, content, guard, activate=activate, allow_noop=allow_noop)
            async with self.changes.of(name, guard):  # it follows what the other server did
                live = self.registry.live(name)
                return Upload(live, "unchanged", self.registry.state(live.key))
        except (AdapterError, BudgetError, StoreError) as error:
            self.observer.adapter_refused(error.code)
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
            activation = await self.activating.make_live(same, "replace", guard)
            return Upload(activation.version, "replace" if activation.replaced else "load", VersionState.LIVE)
        return Upload(same, "restore" if restored else "unchanged", self.registry.state(same.key))

    async def _restore(self, version: AdapterVersion, package: Path) -> AdapterVersion:
        """Give a version the files of ``package``, whose content is its own, and make it resident if it is not."""
        key, failed = version.key, self.registry.state(version.key) is VersionState.FAILED
        if await self.draining.cancel(key):
            self.registry.drained(key)
        arriving = await ask(self.catalog.reserve_package, key)
        try:
            path = await self.store.run(self.store.adopt, package, arriving)
            loaded = await self.residency.load(key, path, allow_noop=True, nbytes=version.nbytes)  # accepted before
        except BaseException:
            await self.removal.return_files(key, arriving)
            raise
        restored = replace(version, path=path)
        event = Event("restore", key.version)
        _, history = await self.changes.write(
            key.name, lambda history: history.move(restored), event, Guard(), arriving=(key, arriving)
        )
        await self.following.follow(key.name, history, resident=key)
        self.registry.healed(key)
        if failed:
            self.observer.adapter_loaded(loaded)
        await self.removal.delete_files(key, version.path)
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
                await self.removal.return_files(key, package)
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
            sentence_model=content.sentence_model,
            created=time.time(),
            manifest=content.info.manifest,
            warnings=(*loaded.warnings, *self.reader.warnings(content, loaded.token_ids)),
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
            most = self.max_versions if own is None else own
            evicted = history.superfluous(most, used) if most else []
            for old in evicted:
                history.forget(old.key.version)
            return replaced, evicted

        event = Event("upload", key.version, {"digest": key.digest, "candidate": not activate})
        arriving = (key, version.path.name)
        (replaced, evicted), history = await self.changes.write(key.name, add, event, guard, arriving=arriving)
        self.observer.adapter_loaded(loaded)
        await self.following.follow(key.name, history, action="replace", resident=key, ours=evicted)
        for old in evicted:
            logger.info("adapter %s deleted: there are more versions than are to be kept", old.key)
        if not activate:
            logger.info("adapter %s waits as a candidate", key)
        action: Uploaded = "candidate" if not activate else "replace" if replaced else "load"
        return Upload(version, action, self.registry.state(key), tuple(evicted))
