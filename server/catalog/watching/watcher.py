"""Serves what is in a folder: looks every second, and takes what has come to rest. Asyncio-confined.

A package is copied before it is looked into, and the copy counts only if nothing changed meanwhile: what is served is
never half of one and half of another. Each state of it is tried once, and what became of it is remembered.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections import Counter
from pathlib import Path

import msgspec

from adapters.errors import AdapterError
from adapters.package.inspection import inspect_package
from server.catalog.database.asking import ask
from server.catalog.events import ACTOR, Actor, Event
from server.catalog.lifecycle import AdapterLifecycle
from server.catalog.store import disk_errors
from server.catalog.store.object_store import mark_of
from server.catalog.watching.folder import Entry, Signature, device_of, look, scan
from server.catalog.watching.memory import Known, Memory
from server.errors import InvalidRequestError, ServerError, UnknownModelError

logger = logging.getLogger(__name__)
_audit = logging.getLogger("server.audit")
INTERVAL = 1.0  # seconds between looks
AT_REST = 2  # looks that found nothing changed, before a package is copied
GIVEN_UP = 5  # and before one that is not whole is called a bad one, or is taken if some of its files are as before:
# a copy may stand still for a while, with new files beside old ones
GONE = 2  # looks that did not find it, before it is drained
_MOST_VERSIONS = 1000  # that are remembered of one name
_LONGEST_PAUSE = 60  # looks before what this server could not do is tried again


class Watcher:
    """Keeps the names of ``lifecycle`` as the packages in ``folder`` are, from ``start`` to ``close``.

    A name that somebody else removes, or gives another version, stays so until its package changes.
    """

    def __init__(self, lifecycle: AdapterLifecycle, folder: Path, *, allow_noop: bool = False) -> None:
        self.folder = folder
        self._lifecycle = lifecycle
        self._allow_noop = allow_noop
        self._memory = Memory(lifecycle.store.root, folder)
        self._seen: dict[str, Signature] = {}
        self._rests: Counter[str] = Counter()
        self._absent: Counter[str] = Counter()
        self._failures: Counter[str] = Counter()  # of ours
        self._pauses: dict[str, int] = {}
        self._since_start: set[str] | None = None  # names that have been there in every look
        self._device: int | None = None
        self._scan_seconds = 0.0
        self._told: set[str] = set()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Look from now on."""
        self._task = asyncio.create_task(self._run(), name="watcher")

    async def close(self) -> None:
        """Look no more. What has begun to load is loaded."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        ACTOR.set(Actor("watch", str(self.folder)))
        while True:
            try:
                await self.poll()
            except Exception:
                logger.exception("looking into %s failed", self.folder)
            await asyncio.sleep(max(INTERVAL, 4 * self._scan_seconds))  # a slow disk has its rest

    async def poll(self) -> None:
        """Look once, and do what is to be done."""
        if self._device is None:
            await self._begin()
        begin = time.monotonic()
        entries = await asyncio.to_thread(self._scan)
        self._scan_seconds = time.monotonic() - begin
        if entries is None:
            return
        self._since_start = entries.keys() & (entries if self._since_start is None else self._since_start)
        for entry in entries.values():
            if self._is_due(entry):
                await self._take(entry)
        for name in [name for name in self._memory.known if name not in entries]:
            self._absent[name] += 1
            if self._absent[name] >= GONE:
                await self._let_go(name)

    async def _begin(self) -> None:
        """Remember what an earlier server knew, but for names that the catalog has never heard of."""
        await asyncio.to_thread(self._memory.load)
        registry = self._lifecycle.registry
        for name, known in list(self._memory.known.items()):
            if known.versions and registry.history(name) is None:
                del self._memory.known[name]

    # ---- looking ----

    def _scan(self) -> dict[str, Entry] | None:
        """What is there; None when the folder itself is not, which says nothing of its packages."""
        try:
            device, (entries, passed_over) = device_of(self.folder), scan(self.folder)
        except OSError as error:
            self._tell_once(f"cannot be read ({error.strerror}); what it held is served on")
            return None
        if self._device is None or entries:
            self._device = device
        if device != self._device:
            self._tell_once("is on another disk than before, and empty; what it held is served on")
            return None
        for name in passed_over:
            self._tell_once(f"holds {name} beside another package of that name, and it is passed over")
        return entries

    def _is_due(self, entry: Entry) -> bool:
        """Whether a package is another one than what is known, and has come to rest."""
        name = entry.name
        self._absent.pop(name, None)
        if self._seen.get(name) != entry.signature:
            self._seen[name] = entry.signature
            self._rests[name] = 0
            self._pauses.pop(name, None)
            return False
        self._rests[name] += 1
        known = self._memory.known.get(name)
        if entry.arriving or (known is not None and known.signature == entry.signature):
            return False
        if (pause := self._pauses.get(name)) is not None:
            self._pauses[name] = pause - 1
            return pause <= 1
        partly = known is not None and not set(known.signature).isdisjoint(entry.signature)
        return self._rests[name] == GIVEN_UP or (self._rests[name] == AT_REST and not partly)

    def _tell_once(self, what: str) -> None:
        if what not in self._told:
            self._told.add(what)
            logger.warning("the watched folder %s %s", self.folder, what)

    # ---- taking ----

    async def _take(self, entry: Entry) -> None:
        known = self._memory.known.get(entry.name) or Known(signature=())
        package: Path | None = None
        try:
            self._lifecycle.registry.check_new_name(entry.name)
            with disk_errors():
                package, content, digest = await asyncio.to_thread(self._copy, entry)
            if package is None:
                return  # it has changed meanwhile
            if content != known.content and not self._is_served_before(entry.name, digest):
                known = await self._serve(entry.name, package, known)
            known = msgspec.structs.replace(known, content=content, refused="")
        except (AdapterError, InvalidRequestError) as error:
            if self._rests[entry.name] < GIVEN_UP and package is None and isinstance(error, AdapterError):
                return  # perhaps it is not all there
            known = msgspec.structs.replace(known, refused=str(error))
            await self._refused(entry.name, str(error))
        except ServerError as error:
            self._pause(entry.name, str(error))
            return
        finally:
            if package is not None:
                await asyncio.to_thread(self._lifecycle.store.discard, package)
        self._failures.pop(entry.name, None)
        self._pauses.pop(entry.name, None)
        await self._remember(entry.name, msgspec.structs.replace(known, signature=entry.signature))

    def _copy(self, entry: Entry) -> tuple[Path | None, str, str]:
        """A copy of the package as it is now, a digest of its files and of its content; None if it changes meanwhile.

        Raises PackageError, or OSError of our disk.
        """
        store = self._lifecycle.store
        package = store.stage_copy(entry.path)
        try:
            digest = inspect_package(package).digest
            mark = mark_of(package)
        except BaseException:
            store.discard(package)
            raise
        if look(entry.path) != entry:
            store.discard(package)
            return None, "", ""
        return package, hashlib.sha256(msgspec.json.encode(mark)).hexdigest(), digest

    def _is_served_before(self, name: str, digest: str) -> bool:
        """Whether content that was here at the start, and that nobody remembers, is known to the catalog already."""
        registry = self._lifecycle.registry
        if name in self._memory.known or name not in (self._since_start or ()) or name not in registry.known_names():
            return False
        return any(version.key.digest == digest for version in registry.versions(name))

    async def _serve(self, name: str, package: Path, known: Known) -> Known:
        done = await self._lifecycle.upload(name, package, replace=True, allow_noop=self._allow_noop)
        key = done.version.key
        if done.action != "unchanged":
            self._note(name, done.action, version=key.version, digest=key.digest)
        versions = [number for number in known.versions if number != key.version][-_MOST_VERSIONS:]
        return msgspec.structs.replace(known, versions=(*versions, key.version))

    async def _refused(self, name: str, reason: str) -> None:
        logger.warning("%s of %s is not served: %s", name, self.folder, reason)
        self._note(name, "refuse", reason=reason)
        event = Event("upload", detail={"reason": reason, "folder": str(self.folder)})
        try:
            await ask(self._lifecycle.catalog.record, name, event, refused=True)
        except ServerError as error:
            logger.warning("the catalog has not been told of it: %s", error)

    def _pause(self, name: str, reason: str) -> None:
        """Try again later what failed through no fault of the package."""
        self._failures[name] += 1
        self._pauses[name] = min(2 ** self._failures[name], _LONGEST_PAUSE)
        logger.warning("%s of %s cannot be served yet: %s", name, self.folder, reason)

    # ---- letting go ----

    async def _let_go(self, name: str) -> None:
        """Drain a name whose package is gone, if it still serves a version that came of it."""
        known, registry = self._memory.known[name], self._lifecycle.registry
        live = registry.live_number(name)
        if live is not None and live in known.versions:
            try:
                versions = await self._lifecycle.remove(name)
                self._note(name, "remove", mode="drain", versions=[version.key.version for version in versions])
            except UnknownModelError:
                pass
            except ServerError as error:
                logger.warning("%s, which is gone from %s, cannot be drained yet: %s", name, self.folder, error)
                return
        elif live is not None:
            logger.info("%s is gone from %s; version %d, which came otherwise, is served on", name, self.folder, live)
        for about in (self._seen, self._rests, self._absent, self._failures, self._pauses):
            about.pop(name, None)
        await self._remember(name, None)

    async def _remember(self, name: str, known: Known | None) -> None:
        if known is None:
            del self._memory.known[name]
        else:
            self._memory.known[name] = known
        await asyncio.to_thread(self._memory.save)

    def _note(self, name: str, action: str, **details: object) -> None:
        """A line of the audit log, as a change by the API has."""
        fields = {"action": action, "adapter": name, "client": "watch", "folder": str(self.folder), **details}
        _audit.info("adapter %s: %s", name, action, extra={"fields": fields})
