"""Names to immutable adapter versions: which one a name means now, and who still uses which.

In memory; a durable registry keeps this interface and adds storage. Asyncio-confined: every call comes from the event
loop's thread, so that each method is atomic. Knows no files and no engine.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import msgspec

from adapters.added_tokens import AddedToken
from adapters.manifest import Manifest
from adapters.names import check_name, shown
from server.errors import InvalidRequestError, UnknownModelError
from server.leases import Lease, LeaseTable


class AdapterKey(msgspec.Struct, frozen=True, array_like=True):
    """One immutable version of one adapter. ``digest`` is the hex SHA-256 of its content."""

    name: str
    version: int
    digest: str

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"


class VersionState(StrEnum):
    """Where a version stands: serving its name, finishing its last requests, or only kept on disk."""

    LIVE = "live"
    DRAINING = "draining"
    STORED = "stored"


@dataclass(frozen=True, kw_only=True)
class AdapterVersion:
    """What is known of one version; never changes. ``created`` is in Unix seconds, ``nbytes`` those of its tensors.

    ``vocab_size`` is set when it is not the base's; ``tokens`` are those that the adapter adds to the base's tokenizer.
    """

    key: AdapterKey
    path: Path
    kind: str
    nbytes: int
    num_virtual_tokens: int
    created: float
    vocab_size: int | None = None
    tokens: tuple[AddedToken, ...] = ()
    manifest: Manifest | None = None
    warnings: tuple[str, ...] = ()


@dataclass(eq=False)
class _Entry:
    """One name. ``live`` is None before its first commit and once it is ``removed``; ``last`` was given out last."""

    live: int | None = None
    last: int = 0
    removed: bool = False
    versions: dict[int, AdapterVersion] = field(default_factory=dict)
    draining: set[int] = field(default_factory=set)


class Registry:
    """The names a server answers to. A name serves version n until a commit or activate flips it, in one assignment.

    Adding a version is ``reserve``, then making it resident, then ``commit`` (or ``release``): requests never resolve
    to a version that is not resident yet.
    """

    def __init__(self, base_name: str) -> None:
        self.base_name = base_name
        self._entries: dict[str, _Entry] = {}
        self._leases: LeaseTable[AdapterKey] = LeaseTable()

    # ---- requests ----

    def resolve(self, model: str) -> AdapterKey | None:
        """The version that ``model`` means now; None for the base.

        ``model`` is the base's name, ``name``, ``name@version``, or either after ``base:``. Raises UnknownModelError.
        """
        if model == self.base_name:
            return None
        name, _, number = model.removeprefix(f"{self.base_name}:").partition("@")
        entry = self._entry(name)
        assert entry.live is not None
        if not number:
            return entry.versions[entry.live].key
        version = self._version(entry, name, number)
        if version.key.version != entry.live:
            raise UnknownModelError(
                f"Version {version.key.version} of {name!r} is not being served, version {entry.live} is. "
                f"Ask for {name!r}, or have the other version activated."
            )
        return version.key

    def lease(self, model: str) -> Lease[AdapterKey]:
        """Resolve ``model`` and hold its version until the lease is released, so that it is not unloaded before.

        Raises UnknownModelError.
        """
        return self._leases.acquire(self.resolve(model))

    async def unused(self, key: AdapterKey) -> None:
        """Wait until no lease holds ``key``."""
        await self._leases.unused(key)

    # ---- changes ----

    def check_new_name(self, name: str) -> None:
        """Raise PackageError, or InvalidRequestError for the base's own name, unless an adapter may be called that."""
        check_name(name)
        if name == self.base_name:
            raise InvalidRequestError(f"{name!r} is the name of the base; choose another", param="name")

    def reserve(self, name: str, digest: str) -> AdapterKey:
        """The key of a next version of ``name``, not visible to requests. Numbers given out are not used twice."""
        self.check_new_name(name)
        entry = self._entries.setdefault(name, _Entry())
        entry.last += 1
        return AdapterKey(name, entry.last, digest)

    def release(self, key: AdapterKey) -> None:
        """Give back a reserved key whose version was refused: the name stands as if it had never been tried."""
        entry = self._entries[key.name]
        assert key.version not in entry.versions, f"{key} is committed"
        if entry.last == key.version:
            entry.last -= 1
        if entry.last == 0:
            del self._entries[key.name]

    def commit(self, version: AdapterVersion) -> AdapterVersion | None:
        """Make a reserved version, resident by now, the one its name serves; returns the version it replaces."""
        entry = self._entries[version.key.name]
        entry.versions[version.key.version] = version
        return self._flip(entry, version.key.version)

    def activate(self, key: AdapterKey) -> AdapterVersion | None:
        """Make an older version, resident by now, the one its name serves; returns the version it replaces."""
        return self._flip(self._entry(key.name), key.version)

    def drained(self, key: AdapterKey) -> None:
        """The version's last request has ended."""
        if (entry := self._entries.get(key.name)) is not None:
            entry.draining.discard(key.version)

    def remove(self, name: str) -> list[AdapterVersion]:
        """Leave a tombstone in the place of ``name``; returns its versions. Raises UnknownModelError."""
        entry = self._entry(name)
        versions = list(entry.versions.values())
        self._entries[name] = _Entry(last=entry.last, removed=True)
        return versions

    def forget_version(self, key: AdapterKey) -> None:
        """Drop a version that is not live."""
        entry = self._entry(key.name)
        assert key.version != entry.live, f"{key} is live"
        del entry.versions[key.version]
        entry.draining.discard(key.version)

    # ---- inspection ----

    def names(self) -> list[str]:
        """Names that are served, sorted."""
        return sorted(name for name, entry in self._entries.items() if entry.live is not None)

    def live(self, name: str) -> AdapterVersion:
        """The version that ``name`` serves. Raises UnknownModelError."""
        entry = self._entry(name)
        assert entry.live is not None
        return entry.versions[entry.live]

    def version(self, name: str, number: int) -> AdapterVersion:
        """One version of ``name``. Raises UnknownModelError."""
        return self._version(self._entry(name), name, str(number))

    def versions(self, name: str) -> list[AdapterVersion]:
        """All versions of ``name`` that can be activated, oldest first. Raises UnknownModelError."""
        return [version for _, version in sorted(self._entry(name).versions.items())]

    def state(self, key: AdapterKey) -> VersionState:
        """Where a version of a served name stands. Raises UnknownModelError."""
        entry = self._entry(key.name)
        if key.version == entry.live:
            return VersionState.LIVE
        return VersionState.DRAINING if key.version in entry.draining else VersionState.STORED

    # ---- inside ----

    def _entry(self, name: str) -> _Entry:
        entry = self._entries.get(name)
        if entry is not None and entry.live is not None:
            return entry
        if entry is not None and entry.removed:
            raise UnknownModelError(f"The adapter {shown(name)} was removed. Upload it again to use it.")
        raise UnknownModelError(f"The model {shown(name)} does not exist. GET /v1/models lists what is served.")

    def _version(self, entry: _Entry, name: str, number: str) -> AdapterVersion:
        version = entry.versions.get(int(number)) if number.isdecimal() and len(number) < 10 else None
        if version is None:
            raise UnknownModelError(f"The adapter {shown(name)} has no version {shown(number)}.")
        return version

    def _flip(self, entry: _Entry, number: int) -> AdapterVersion | None:
        replaced = entry.versions.get(entry.live) if entry.live is not None else None
        entry.live, entry.removed = number, False
        entry.draining.discard(number)
        if replaced is not None:
            entry.draining.add(replaced.key.version)
        return replaced
