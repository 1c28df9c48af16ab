"""How the requests to one name are shared out: canaries that answer a share of them, a shadow that gets copies.

Pure data and pure functions: ``Traffic`` is kept with the name, and every server draws from it alike. Each canary owns
parts of the line from 0 to UNITS, the live version the rest. A request is a point on it, by a hash of what it sticks
to; so a canary that grows takes points from the live version alone, and one that shrinks gives them back to it.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from server.catalog.canary_rules import Rules

UNITS = 1_000_000
MAX_CANARIES = 8
MAX_SCORES = 64  # of one version
MAX_STICKY = 1024  # characters of what a request sticks to that count
_ROUNDING = 1e-9

Parts = tuple[tuple[int, int], ...]  # begin and end, of UNITS


class Canary(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A version that answers a share of its name's requests. ``began``: when it got this share, in Unix seconds.

    Without a breach of ``rules`` it gets the next of the weights ``steps`` after ``step_seconds`` and
    ``step_requests``; 1 promotes it.
    """

    version: int
    parts: Parts
    began: float
    rules: Rules = Rules()
    steps: tuple[float, ...] = ()
    step_seconds: float = 0.0
    step_requests: int = 0

    @property
    def weight(self) -> float:
        """Its share, 0 to 1."""
        return _size(self.parts) / UNITS


class Shadow(msgspec.Struct, frozen=True, kw_only=True):
    """A version that gets a copy of a share of the requests that the live version answers; nobody sees its answers."""

    version: int
    weight: float
    began: float


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the last canary. ``outcome`` is promoted, aborted, replaced (by a change of the live version), or
    deleted."""

    version: int
    outcome: str
    reason: str
    at: float
    automatic: bool = False


class Traffic(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The durable part. ``salt`` is drawn when canaries begin, so that not the same people get every one of them.

    ``scores`` are the numbers that evaluators have posted, by version, as JSON writes it, and metric.
    """

    salt: str = ""
    canaries: tuple[Canary, ...] = ()
    shadow: Shadow | None = None
    scores: dict[str, dict[str, float]] = {}
    ended: Ended | None = None

    @property
    def is_split(self) -> bool:
        """Whether anything but the live version is asked."""
        return bool(self.canaries or self.shadow)

    @property
    def shares(self) -> dict[int, Canary | Shadow]:
        """What each version gets, apart from what was seen of it."""
        shares: dict[int, Canary | Shadow] = {canary.version: canary for canary in self.canaries}
        return {**shares, self.shadow.version: self.shadow} if self.shadow else shares

    @property
    def versions(self) -> frozenset[int]:
        """Those that are asked beside the live one."""
        shadow = {self.shadow.version} if self.shadow else set()
        return frozenset({canary.version for canary in self.canaries} | shadow)

    def scores_of(self, version: int | None) -> dict[str, float]:
        """What evaluators have posted of a version."""
        return self.scores.get(str(version), {})

    def canary(self, version: int) -> Canary | None:
        """The canary of that version, if there is one."""
        return next((canary for canary in self.canaries if canary.version == version), None)

    def drawn(self, name: str, sticky: str | None) -> int | None:
        """The version of the canary that answers a request that sticks to ``sticky`` (None: to nothing).

        None: the live version does.
        """
        if not self.canaries:
            return None
        at = secrets.randbelow(UNITS) if sticky is None else point(name, sticky, self.salt)
        for canary in self.canaries:
            if any(begin <= at < end for begin, end in canary.parts):
                return canary.version
        return None


NO_SPLIT = Traffic()


def point(name: str, sticky: str, salt: str) -> int:
    """Where on the line the requests of ``name`` stand that stick to ``sticky``: the same on every server."""
    text = "\0".join((name, salt, sticky[:MAX_STICKY]))
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest) * UNITS >> 64


# ---- changes ----


def with_canaries(traffic: Traffic, wanted: Sequence[Canary], weights: Sequence[float]) -> Traffic:
    """``traffic`` with ``wanted`` as its canaries, one for each of ``weights``; their own parts do not count.

    Those that go on keep as much of their parts as their weight allows, and no other moves for them.
    """
    before = {canary.version: canary.parts for canary in traffic.canaries}
    parts = lay_out(before, dict(zip((canary.version for canary in wanted), weights, strict=True)))
    canaries = tuple(msgspec.structs.replace(canary, parts=parts[canary.version]) for canary in wanted)
    salt = traffic.salt if before.keys() & parts.keys() else secrets.token_hex(8)
    return msgspec.structs.replace(traffic, canaries=canaries, salt=salt)


def lay_out(before: Mapping[int, Parts], weights: Mapping[int, float]) -> dict[int, Parts]:
    """The parts of each version, given those it had and the weights wanted, of at most 1 in all."""
    assert sum(weights.values()) <= 1 + _ROUNDING
    units = {version: max(round(weight * UNITS), int(weight > 0)) for version, weight in weights.items()}
    parts = {version: _first(before.get(version, ()), size) for version, size in units.items()}
    for version, size in units.items():
        free = _between(part for owned in parts.values() for part in owned)
        parts[version] += _first(free, size - _size(parts[version]))
    return {version: _joined(owned) for version, owned in parts.items()}


def with_scores(traffic: Traffic, version: int, scores: Mapping[str, float]) -> Traffic:
    """``traffic`` with an evaluator's ``scores`` of a version, in addition to others of it."""
    known = {**traffic.scores_of(version), **scores}
    return msgspec.structs.replace(traffic, scores={**traffic.scores, str(version): known})


def without(traffic: Traffic, versions: Iterable[int], ended: Ended | None = None) -> Traffic:
    """``traffic`` with no part for ``versions``; ``ended`` says of one why."""
    gone = frozenset(versions)
    canaries = tuple(canary for canary in traffic.canaries if canary.version not in gone)
    shadow = None if traffic.shadow and traffic.shadow.version in gone else traffic.shadow
    return msgspec.structs.replace(
        traffic,
        canaries=canaries,
        shadow=shadow,
        salt=traffic.salt if canaries or shadow else "",
        ended=ended or traffic.ended,
    )


def forgotten(traffic: Traffic, version: int, now: float) -> Traffic:
    """``traffic`` without anything of a version that is deleted."""
    if version in traffic.versions:
        reason = "the version was deleted"
        traffic = without(traffic, [version], Ended(version=version, outcome="deleted", reason=reason, at=now))
    scores = {other: scores for other, scores in traffic.scores.items() if other != str(version)}
    return msgspec.structs.replace(traffic, scores=scores)


def after_change(traffic: Traffic, live: int, now: float) -> Traffic:
    """What is left when the name serves ``live`` from now on: no canary and no shadow, which were compared with another
    version. Scores stay for the next one."""
    ended = traffic.ended
    if canary := traffic.canary(live):
        ended = Ended(version=canary.version, outcome="promoted", reason="it was made live", at=now)
    elif traffic.canaries:
        reason = f"version {live} was made live"
        ended = Ended(version=traffic.canaries[0].version, outcome="replaced", reason=reason, at=now)
    return msgspec.structs.replace(traffic, canaries=(), shadow=None, salt="", ended=ended)


def _size(parts: Parts) -> int:
    return sum(end - begin for begin, end in parts)


def _first(parts: Parts, size: int) -> Parts:
    """The first ``size`` units of ``parts``, or as many as there are."""
    taken: list[tuple[int, int]] = []
    for begin, end in parts:
        if size <= 0:
            break
        taken.append((begin, min(end, begin + size)))
        size -= end - begin
    return tuple(taken)


def _between(parts: Iterable[tuple[int, int]]) -> Parts:
    """What of the line is in none of ``parts``."""
    free, at = [], 0
    for begin, end in [*sorted(parts), (UNITS, UNITS)]:
        if at < begin:
            free.append((at, begin))
        at = max(at, end)
    return tuple(free)


def _joined(parts: Parts) -> Parts:
    """The same with neighbours as one."""
    joined: list[tuple[int, int]] = []
    for begin, end in sorted(parts):
        if joined and joined[-1][1] == begin:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((begin, end))
    return tuple(joined)
