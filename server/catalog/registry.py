"""Names to immutable adapter versions: which one a name means now, and who still uses which.

In memory; a durable registry keeps this interface and adds storage. Asyncio-confined: every call comes from the event
loop's thread, so that each method is atomic. Knows no files and no engine.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Self

from adapters.names import check_name
from adapters.quoting import quote
from server.adapter_key import AdapterKey, version_number
from server.catalog.versions import AdapterVersion, VersionHistory, VersionState
from server.errors import AdapterFailedError, ConflictError, InvalidRequestError, UnknownModelError


class Lease:
    """A request's hold on the version ``key`` until released; None, the base, is nothing that could go away.

    ``sequences`` of it are running. Releasing again does nothing.
    """

    def __init__(self, key: AdapterKey | None, on_release: Callable[[Lease], None]) -> None:
        self.key = key
        self.sequences = 0
        self._on_release: Callable[[Lease], None] | None = on_release

    def release(self) -> None:
        """Let go."""
        on_release, self._on_release = self._on_release, None
        if on_release is not None:
            on_release(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()


MAX_CANDIDATES = 16
_SHOWN_CANDIDATES = 8


class Registry:
    """The names a server answers to. A name serves version n until commit or activate changes that, in one assignment.

    Adding a version is ``reserve``, then making it resident, then ``commit`` (or ``release``): requests never resolve
    to a version that is not resident yet. At most ``max_candidates`` versions wait as candidates, over all names.
    """

    def __init__(self, base_name: str, max_candidates: int = MAX_CANDIDATES) -> None:
        self.base_name = base_name
        self._max_candidates = max_candidates
        self._entries: dict[str, VersionHistory] = {}
        self._leaving: dict[AdapterKey, AdapterVersion] = {}
        self._leases: dict[AdapterKey, set[Lease]] = {}  # the one count of who uses a version
        self._unused: dict[AdapterKey, asyncio.Event] = {}

    # ---- requests ----

    def resolve(self, model: str) -> AdapterKey | None:
        """The version that ``model`` means now; None for the base.

        ``model`` is the base's name, ``name``, ``name@version`` (live or candidate), or either after ``base:``.
        Raises UnknownModelError, or AdapterFailedError.
        """
        key = self.find(model)
        if key is not None and (reason := self.failure(key)) is not None:
            raise AdapterFailedError(
                f"{key} cannot be loaded: {reason}. Upload it again, activate it once its files are mended "
                f"(PATCH /v1/adapters/{key.name}), or activate another version"
            )
        return key

    def find(self, model: str) -> AdapterKey | None:
        """As ``resolve``, also for a version that failed."""
        if model == self.base_name:
            return None
        name, at, number = model.removeprefix(f"{self.base_name}:").partition("@")
        if not at:
            return self.live(name).key  # shares of traffic (canaries) would be drawn here
        entry = self._entry(name)
        version = self._version(entry, name, number)
        if entry.state(version.key.version) not in (VersionState.LIVE, VersionState.CANDIDATE, VersionState.FAILED):
            raise UnknownModelError(
                f"Version {version.key.version} of {name!r} is not being served, {_served(name, entry)}. "
                f"Ask for {name!r}, or have the other version activated."
            )
        return version.key

    def lease(self, model: str) -> Lease:
        """Resolve ``model`` and hold its version until the lease is released, so that it is not unloaded before.

        Raises UnknownModelError, or AdapterFailedError.
        """
        lease = Lease(self.resolve(model), self._release)
        if lease.key is not None:
            self._leases.setdefault(lease.key, set()).add(lease)
        return lease

    def running(self, key: AdapterKey) -> int:
        """Sequences of a version that have not ended."""
        return sum(lease.sequences for lease in self._leases.get(key, ()))

    async def unused(self, key: AdapterKey) -> None:
        """Wait until no lease holds ``key``."""
        while key in self._leases:
            await self._unused.setdefault(key, asyncio.Event()).wait()

    def leased(self, key: AdapterKey) -> AdapterVersion:
        """What is known of a version that a request holds, be it one that is being deleted. Raises UnknownModelError.

        It is unknown only when it was deleted by force.
        """
        return self._leaving.get(key) or self.version(key.name, key.version)

    # ---- changes ----

    def check_new_name(self, name: str) -> None:
        """Raise PackageError, or InvalidRequestError for the base's own name, unless an adapter may be called that."""
        check_name(name)
        if name == self.base_name:
            raise InvalidRequestError(f"{name!r} is the name of the base; choose another", param="name")

    def reserve(self, name: str, digest: str, *, candidate: bool = False) -> AdapterKey:
        """The key of a next version of ``name``, not visible to requests. Numbers given out are not used twice.

        Raises ConflictError when there are too many candidates already.
        """
        self.check_new_name(name)
        if candidate:
            self._check_room()
        entry = self._entries.setdefault(name, VersionHistory())
        return AdapterKey(name, entry.reserve(candidate=candidate), digest)

    def release(self, key: AdapterKey) -> None:
        """Give back a reserved key whose version was refused: the name stands as if it had never been tried."""
        entry = self._entries[key.name]
        entry.release(key.version)
        if entry.last == 0:
            del self._entries[key.name]

    def commit(self, version: AdapterVersion) -> AdapterVersion | None:
        """Keep a reserved version, resident by now. Unless it is a candidate its name serves it from now on.

        Returns the version that it replaces.
        """
        entry = self._entries[version.key.name]
        entry.add(version)
        return None if version.key.version in entry.candidates else entry.activate(version.key.version)

    def activate(self, key: AdapterKey, *, back: bool = False) -> AdapterVersion | None:
        """Make a version, resident by now, the one its name serves; returns the version it replaces.

        ``back`` undoes the activations since ``key`` was live, so that rolling back goes on from there.
        """
        entry = self._entry(key.name)
        return entry.roll_back(key.version) if back else entry.activate(key.version)

    def drained(self, key: AdapterKey) -> None:
        """The version's last request has ended."""
        if (entry := self._entries.get(key.name)) is not None:
            entry.drained(key.version)

    def failed(self, key: AdapterKey, reason: str) -> None:
        """A version, if it is known still, could not be loaded."""
        entry = self._entries.get(key.name)
        if entry is not None and entry.get(key.version) is not None:
            entry.fail(key.version, reason)

    def healed(self, version: AdapterVersion) -> None:
        """A known version is resident (again), from the place that ``version`` names."""
        self._entry(version.key.name).heal(version)

    def remove(self, name: str) -> list[AdapterVersion]:
        """Leave a tombstone in the place of ``name``; returns its versions, each to be ``deleted`` later.

        Raises UnknownModelError.
        """
        entry = self._entry(name)
        self._entries[name] = VersionHistory(last=entry.last, removed=entry.removed or entry.live is not None)
        self._leaving |= {version.key: version for version in entry.all()}
        return entry.all()

    def forget_version(self, key: AdapterKey) -> None:
        """Drop a version that is not live, to be ``deleted`` later."""
        version = self.version(key.name, key.version)
        self._entry(key.name).forget(key.version)
        self._leaving[key] = version

    def deleted(self, key: AdapterKey) -> None:
        """Nobody uses a version any more that was removed or forgotten."""
        self._leaving.pop(key, None)

    # ---- inspection ----

    def names(self) -> list[str]:
        """Names that are served, sorted; without those whose live version failed."""
        entries = self._entries.items()
        return sorted(name for name, entry in entries if entry.live is not None and entry.live not in entry.failures)

    def live_number(self, name: str) -> int | None:
        """The number of the version that ``name`` means, failed or not."""
        entry = self._entries.get(name)
        return None if entry is None else entry.live

    def known_names(self) -> list[str]:
        """Names that have a version, sorted."""
        return sorted(name for name, entry in self._entries.items() if entry.all())

    def counts(self) -> Counter[VersionState]:
        """How many versions are in each state, over all names. May be asked in any thread."""
        entries = list(self._entries.values())
        return Counter(entry.state(v.key.version) for entry in entries for v in entry.all())

    def live(self, name: str) -> AdapterVersion:
        """The version that ``name`` means, failed or not. Raises UnknownModelError."""
        entry = self._entry(name)
        if (version := entry.get(entry.live)) is None:
            raise UnknownModelError(f"The adapter {quote(name)} is not served yet: {_served(name, entry)}.")
        return version

    def before(self, name: str) -> AdapterVersion:
        """The version that ``name`` served before the live one. Raises UnknownModelError, or InvalidRequestError."""
        live, entry = self.live(name), self._entry(name)
        if (version := entry.get(entry.before())) is None:
            raise InvalidRequestError(f"{name!r} has no version before {live.key.version} to go back to")
        return version

    def version(self, name: str, number: int) -> AdapterVersion:
        """One version of ``name``. Raises UnknownModelError."""
        return self._version(self._entry(name), name, str(number))

    def versions(self, name: str) -> list[AdapterVersion]:
        """All versions of ``name`` that can be activated, oldest first. Raises UnknownModelError."""
        return self._entry(name).all()

    def leaving(self, name: str) -> list[AdapterVersion]:
        """Versions of ``name`` that were removed and finish their last requests."""
        return [version for key, version in self._leaving.items() if key.name == name]

    def superfluous(self, name: str, most: int) -> list[AdapterVersion]:
        """Versions of ``name`` beyond ``most`` that nobody uses, oldest first."""
        return self._entry(name).superfluous(most)

    def serves(self, key: AdapterKey) -> bool:
        """Whether a version of a known name is live or a candidate, failed or not."""
        return self.is_candidate(key) or self.live_number(key.name) == key.version

    def is_candidate(self, key: AdapterKey) -> bool:
        """Whether a version of a known name has never been live, failed or not."""
        return key.version in self._entry(key.name).candidates

    def failure(self, key: AdapterKey) -> str | None:
        """Why a version of a known name could not be loaded; None when it is not in that state."""
        return self._entry(key.name).failures.get(key.version)

    def state(self, key: AdapterKey) -> VersionState:
        """Where a version of a known name stands. Raises UnknownModelError."""
        return self._entry(key.name).state(key.version)

    # ---- inside ----

    def _release(self, lease: Lease) -> None:
        if lease.key is None:
            return
        leases = self._leases[lease.key]
        leases.remove(lease)
        if not leases:
            del self._leases[lease.key]
            if (waited := self._unused.pop(lease.key, None)) is not None:
                waited.set()

    def _entry(self, name: str) -> VersionHistory:
        entry = self._entries.get(name)
        if entry is not None and entry.all():
            return entry
        if entry is not None and entry.removed:
            running = sum(self.running(version.key) for version in self.leaving(name))
            still = f" {running} sequences of it run still; DELETE ?mode=force ends them." if running else ""
            raise UnknownModelError(f"The adapter {quote(name)} was removed. Upload it again to use it.{still}")
        raise UnknownModelError(f"The model {quote(name)} does not exist. GET /v1/models lists what is served.")

    def _version(self, entry: VersionHistory, name: str, number: str) -> AdapterVersion:
        version = entry.get(version_number(number))
        if version is None:
            left = [self.running(gone.key) for gone in self.leaving(name) if number == str(gone.key.version)]
            still = (
                f" It was deleted; {left[0]} sequences of it run still, DELETE ?mode=force ends them." if left else ""
            )
            raise UnknownModelError(f"The adapter {quote(name)} has no version {quote(number)}.{still}")
        return version

    def _check_room(self) -> None:
        waiting = [f"{name}@{n}" for name, entry in sorted(self._entries.items()) for n in sorted(entry.candidates)]
        if len(waiting) >= self._max_candidates:
            named = ", ".join(waiting[:_SHOWN_CANDIDATES]) + (", ..." if len(waiting) > _SHOWN_CANDIDATES else "")
            raise ConflictError(
                f"{len(waiting)} candidates are resident, the limit (--max-candidates): {named}. Activate some, or "
                "send DELETE /v1/adapters/NAME/versions/VERSION",
                code="too_many_candidates",
            )


def _served(name: str, entry: VersionHistory) -> str:
    """Which versions requests may name, in words."""
    live = [] if entry.live is None else [f"version {entry.live} is"]
    waiting = [n for n in sorted(entry.candidates) if entry.get(n)]
    return " and ".join(live + [f"version {n} is a candidate (ask for {name}@{n})" for n in waiting])
