"""Names to immutable adapter versions: which one a name means now, and who still uses which.

In memory: what is durable of it is the catalog's, which is asked first; here it takes effect. Asyncio-confined: every
call comes from the event loop's thread, so that each method is atomic. Knows no files, no database and no engine.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from adapters.names import check_name
from adapters.quoting import quote
from server.adapter_key import AdapterKey, Weighted, combined, version_number
from server.catalog.combinations import MAX_MEMBERS, Part, check_members, split_model
from server.catalog.lease import Lease
from server.catalog.traffic import NO_SPLIT, Traffic
from server.catalog.versions import AdapterVersion, NameSettings, VersionHistory, VersionState
from server.errors import (
    AdapterFailedError,
    ConflictError,
    EngineUnavailableError,
    InvalidRequestError,
    UnknownModelError,
)


@dataclass(frozen=True)
class Draw:
    """A request to be drawn for one of the versions that share a name's. ``sticky`` None: at random."""

    sticky: str | None = None


class Share(NamedTuple):
    """What a version has of the requests to its name, or of their copies. ``role`` is live, canary or shadow."""

    key: AdapterKey
    role: str
    weight: float


MAX_CANDIDATES = 16
_SHOWN_CANDIDATES = 8


class Registry:
    """The names a server answers to. A name serves version n until ``adopt`` changes that, in one assignment.

    At most ``max_candidates`` versions wait as candidates, over all names. A request may combine ``max_combined``.
    """

    def __init__(self, base_name: str, max_candidates: int = MAX_CANDIDATES, max_combined: int = MAX_MEMBERS) -> None:
        self.base_name = base_name
        self._max_combined = max_combined
        self._max_candidates = max_candidates
        self._entries: dict[str, VersionHistory] = {}  # never changed: a change is another history in its place
        self._failures: dict[AdapterKey, str] = {}  # a failed version keeps its place; it is served once it loads
        self._draining: set[AdapterKey] = set()
        self._arriving: list[str] = []  # names whose next candidate is being loaded
        self._leaving: dict[AdapterKey, AdapterVersion] = {}
        self._leases: dict[AdapterKey, set[Lease]] = {}  # the one count of who uses a version
        self._unused: dict[AdapterKey, asyncio.Event] = {}
        self.on_fallback: Callable[[AdapterKey], None] = lambda key: None  # told of a canary that cannot be served
        self.unread_because = ""  # why a name that is not known here may be there all the same

    # ---- requests ----

    def resolve(self, model: str, draw: Draw | None = None) -> AdapterKey | None:
        """The version that ``model`` means now; None for the base.

        ``model`` is the base's name, ``name``, ``name@version`` (live, candidate, or with a part of the requests), or
        either after ``base:``; or several such, to be combined, each with its weight: ``name:0.7+name@version:0.3``.
        Of a name whose requests are shared out that is the live version, with ``draw`` the one that gets this request.
        Raises UnknownModelError, AdapterFailedError, or InvalidRequestError for what cannot be combined.
        """
        key = self.find(model, draw)
        for version in key.versions if key is not None else ():
            if (reason := self.failure(version)) is not None:
                raise AdapterFailedError(
                    f"{version} cannot be loaded: {reason}. Upload it again, activate it once its files are mended "
                    f"(PATCH /v1/adapters/{version.name}), or activate another version"
                )
        return key

    def find(self, model: str, draw: Draw | None = None) -> AdapterKey | None:
        """As ``resolve``, also for a version that failed."""
        if model == self.base_name:
            return None
        parts = self._members(model)
        members = [Weighted(self._find(part.model, draw), part.weight) for part in parts]
        if len(members) > 1:
            check_members([self.version(member.key.name, member.key.version) for member in members])
        return combined(members)

    def _find(self, model: str, draw: Draw | None) -> AdapterKey:
        """The version that a name, or a name and a number, mean."""
        name, number = self._parts(model)
        if number is None:
            live = self.live(name).key
            return live if draw is None else self._drawn(live, draw)
        entry = self._entry(name)
        version = self._version(entry, name, number)
        if self._state(entry, version.key) in (VersionState.DRAINING, VersionState.STORED):
            raise UnknownModelError(
                f"Version {version.key.version} of {name!r} is not being served, {_served(name, entry)}. "
                f"Ask for {name!r}, or have the other version activated."
            )
        return version.key

    def names_of(self, model: str) -> list[str | None]:
        """The names of the adapters that ``model`` means, be there such or not; None for the base.

        Raises InvalidRequestError for what names no combination.
        """
        return [None] if model == self.base_name else [self._parts(part.model)[0] for part in self._members(model)]

    def lease(self, model: str, sticky: str | None = None) -> Lease:
        """Resolve ``model`` and hold its version until the lease is released, so that it is not unloaded before.

        Requests with one ``sticky`` get one version of those that share a name's requests; without it that is drawn
        for each. Raises UnknownModelError, or AdapterFailedError.
        """
        by_name = model != self.base_name and self._parts(model)[1] is None
        key = self.resolve(model, Draw(sticky))
        return self.hold(key, by_name=by_name and key is not None and not key.members)

    def hold(self, key: AdapterKey | None, *, by_name: bool = False) -> Lease:
        """A hold on the versions of ``key``, which are known."""
        lease = Lease(key, self._release, by_name=by_name)
        for version in key.versions if key is not None else ():
            self._leases.setdefault(version, set()).add(lease)
        return lease

    def traffic(self, name: str) -> Traffic:
        """How the requests to a name are shared out; of one that is not known all go to the live version."""
        entry = self._entries.get(name)
        return NO_SPLIT if entry is None else entry.traffic

    def shares(self, name: str) -> list[Share]:
        """The versions that requests to ``name`` go to, or are copied to; none where all go to the live one."""
        entry, traffic = self._entries.get(name), self.traffic(name)
        if entry is None or not traffic.is_split:
            return []
        shares = [("canary", canary.version, canary.weight) for canary in traffic.canaries]
        rest = 1 - sum(weight for _, _, weight in shares)
        shadow = [("shadow", traffic.shadow.version, traffic.shadow.weight)] if traffic.shadow else []
        return [
            Share(version.key, role, weight)
            for role, number, weight in [("live", entry.live, rest), *shares, *shadow]
            if (version := entry.get(number)) is not None
        ]

    def split_names(self) -> list[str]:
        """The names whose requests are shared out. May be asked in any thread."""
        return [name for name, entry in list(self._entries.items()) if entry.traffic.is_split]

    def running(self, key: AdapterKey) -> int:
        """Sequences of a version that have not ended."""
        return sum(lease.sequences for lease in self._leases.get(key, ()))

    async def unused(self, key: AdapterKey) -> None:
        """Wait until no lease holds ``key``."""
        while key in self._leases:
            await self._unused.setdefault(key, asyncio.Event()).wait()

    def leased(self, key: AdapterKey) -> AdapterVersion:
        """What is known of a version that a request holds, be it one that is being deleted. Raises UnknownModelError.

        It is unknown only when it was deleted by force. Of a combination it is what all its members have in common, and
        the head that one of them has.
        """
        versions = [self._leaving.get(one) or self.version(one.name, one.version) for one in key.versions]
        return next((version for version in versions if version.head is not None), versions[0])

    def find_version(self, key: AdapterKey) -> AdapterVersion | None:
        """As ``leased``, None when it is unknown."""
        if key in self._leaving:
            return self._leaving[key]
        entry = self._entries.get(key.name)
        return None if entry is None else entry.get(key.version)

    # ---- changes ----

    def check_new_name(self, name: str) -> None:
        """Raise PackageError, or InvalidRequestError for the base's own name, unless an adapter may be called that."""
        check_name(name)
        if name == self.base_name:
            raise InvalidRequestError(f"{name!r} is the name of the base; choose another", param="name")

    @contextmanager
    def room(self, name: str) -> Iterator[None]:
        """Room for a candidate of ``name`` that is being loaded. Raises ConflictError when there are too many."""
        waiting = [f"{known}@{n}" for known, entry in self._entries.items() for n in entry.candidates]
        waiting = sorted(waiting + self._arriving)
        if len(waiting) >= self._max_candidates:
            named = ", ".join(waiting[:_SHOWN_CANDIDATES]) + (", ..." if len(waiting) > _SHOWN_CANDIDATES else "")
            raise ConflictError(
                f"{len(waiting)} candidates are resident, the limit (--max-candidates): {named}. Activate some, or "
                "send DELETE /v1/adapters/NAME/versions/VERSION",
                code="too_many_candidates",
            )
        self._arriving.append(name)
        try:
            yield
        finally:
            self._arriving.remove(name)

    def adopt(self, name: str, history: VersionHistory) -> list[AdapterVersion]:
        """Let ``name`` be what ``history`` says from now on; whatever it makes live or a candidate is to be resident.

        Returns the versions that it no longer has, each to be ``deleted`` later. Those that are kept and that nobody is
        to ask any more are draining until they are ``drained``.
        """
        before = self._entries.get(name, VersionHistory())
        gone = [version for version in before.all() if history.get(version.key.version) is None]
        for version in gone:
            self._failures.pop(version.key, None)
            self._draining.discard(version.key)
        self._leaving |= {version.key: version for version in gone}
        self._draining.update(version.key for version in before.to_be_resident() if history.get(version.key.version))
        self._draining.difference_update(version.key for version in history.to_be_resident())
        if history.is_blank:
            self._entries.pop(name, None)
        else:
            self._entries[name] = history
        return gone

    def drained(self, key: AdapterKey) -> None:
        """The version's last request has ended."""
        self._draining.discard(key)

    def failed(self, key: AdapterKey, reason: str) -> None:
        """A version, if it is known still, could not be loaded."""
        entry = self._entries.get(key.name)
        if entry is not None and entry.get(key.version) is not None:
            self._failures[key] = reason

    def healed(self, key: AdapterKey) -> None:
        """A known version is resident (again)."""
        self._failures.pop(key, None)

    def deleted(self, key: AdapterKey) -> None:
        """Nobody uses a version any more that the registry has let go."""
        self._leaving.pop(key, None)

    # ---- inspection ----

    def names(self) -> list[str]:
        """Names that are served, sorted; without those whose live version failed."""
        live = [version.key for entry in self._entries.values() if (version := entry.get(entry.live)) is not None]
        return sorted(key.name for key in live if key not in self._failures)

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
        return Counter(self._state(entry, v.key) for entry in entries for v in entry.all())

    def stored(self) -> tuple[int, int]:
        """How many versions are kept, and what their tensors weigh. May be asked in any thread."""
        kept = [version.nbytes for entry in list(self._entries.values()) for version in entry.all()]
        return len(kept), sum(kept)

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

    def settings(self, name: str) -> NameSettings:
        """What an operator set for a name; of one that is not known, or was removed, that is nothing."""
        entry = self._entries.get(name)
        return NameSettings() if entry is None else entry.record.settings

    def history(self, name: str) -> VersionHistory | None:
        """All that is known of a name, be it removed; to be looked at only. None: nothing is."""
        return self._entries.get(name)

    def knows(self, key: AdapterKey) -> bool:
        """Whether that very version is kept."""
        entry = self._entries.get(key.name)
        version = None if entry is None else entry.get(key.version)
        return version is not None and version.key == key

    def in_use(self, name: str) -> set[int]:
        """Numbers of versions of ``name`` that finish their last requests here."""
        return {key.version for key in self._draining if key.name == name}

    def serves(self, key: AdapterKey) -> bool:
        """Whether a version is to be resident, failed or not: live, a candidate, or with a share of the requests."""
        entry = self._entries.get(key.name)
        return entry is not None and key in [version.key for version in entry.to_be_resident()]

    def is_candidate(self, key: AdapterKey) -> bool:
        """Whether a version of a known name has never been live, failed or not."""
        return key.version in self._entry(key.name).candidates

    def failure(self, key: AdapterKey) -> str | None:
        """Why a version of a known name could not be loaded; None when it is not in that state."""
        self._entry(key.name)
        return self._failures.get(key)

    def state(self, key: AdapterKey) -> VersionState:
        """Where a version of a known name stands. Raises UnknownModelError."""
        return self._state(self._entry(key.name), key)

    # ---- inside ----

    def _parts(self, model: str) -> tuple[str, str | None]:
        """The name in ``model``, and what stands for the number of a version if anything does."""
        name, at, number = model.removeprefix(f"{self.base_name}:").partition("@")
        return name, number if at else None

    def _drawn(self, live: AdapterKey, draw: Draw) -> AdapterKey:
        """The version that gets a request to a name: one that cannot be served falls back to the live one."""
        entry = self._entries[live.name]
        canary = entry.get(entry.traffic.drawn(live.name, draw.sticky))
        if canary is None:
            return live
        if canary.key in self._failures:
            self.on_fallback(canary.key)
            return live
        return canary.key

    def _members(self, model: str) -> list[Part]:
        """What ``model``, which is not the base, combines; raises InvalidRequestError."""
        return split_model(model, self.base_name, self._entries.__contains__, self._max_combined)

    def _release(self, lease: Lease) -> None:
        for version in lease.key.versions if lease.key is not None else ():
            leases = self._leases[version]
            leases.remove(lease)
            if not leases:
                del self._leases[version]
                if (waited := self._unused.pop(version, None)) is not None:
                    waited.set()

    def _state(self, entry: VersionHistory, key: AdapterKey) -> VersionState:
        if key in self._failures:
            return VersionState.FAILED
        if key.version == entry.live:
            return VersionState.LIVE
        if entry.traffic.canary(key.version):
            return VersionState.CANARY
        if key.version in entry.traffic.versions:
            return VersionState.SHADOW
        if key.version in entry.candidates:
            return VersionState.CANDIDATE
        return VersionState.DRAINING if key in self._draining else VersionState.STORED

    def _entry(self, name: str) -> VersionHistory:
        entry = self._entries.get(name)
        if entry is not None and entry.all():
            return entry
        if self.unread_because:
            raise EngineUnavailableError(self.unread_because)
        if entry is not None and entry.record.removed:
            running = sum(self.running(version.key) for version in self.leaving(name))
            still = f" {running} sequences of it run still; DELETE ?mode=force ends them." if running else ""
            raise UnknownModelError(f"The adapter {quote(name)} was removed. Upload it again to use it.{still}")
        raise unknown_model(name)

    def _version(self, entry: VersionHistory, name: str, number: str) -> AdapterVersion:
        version = entry.get(version_number(number))
        if version is None:
            left = [self.running(gone.key) for gone in self.leaving(name) if number == str(gone.key.version)]
            still = (
                f" It was deleted; {left[0]} sequences of it run still, DELETE ?mode=force ends them." if left else ""
            )
            raise UnknownModelError(f"The adapter {quote(name)} has no version {quote(number)}.{still}")
        return version


def unknown_model(name: str) -> UnknownModelError:
    """What is raised for a name that never was, or that is not to be known."""
    return UnknownModelError(f"The model {quote(name)} does not exist. GET /v1/models lists what is served.")


def _served(name: str, entry: VersionHistory) -> str:
    """Which versions requests may name, in words."""
    live = [] if entry.live is None else [f"version {entry.live} is"]
    waiting = [f"version {n} is a candidate (ask for {name}@{n})" for n in sorted(entry.candidates)]
    return " and ".join(live + waiting)
