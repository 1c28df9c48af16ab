"""What this server has seen of the versions that share a name's requests: counts, and windows to judge by.

In memory; kept while a name is split. Asyncio-confined. ``now`` never goes back, whatever the clock on the wall does.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from server.adapter_key import AdapterKey
from server.catalog.canary_rules import Agreement, Figures
from server.catalog.registry import Registry

MAX_SAMPLES = 1024  # of one version


@dataclass(frozen=True)
class _Request:
    at: float
    failed: bool
    ttft: float | None = None
    itl: float | None = None


@dataclass(frozen=True)
class _Copy:
    at: float
    ratio: float | None
    share: float | None
    exact: bool


@dataclass
class _Seen:
    """One version. Counts are since its name was split, windows hold the last ones."""

    requests: int = 0
    errors: int = 0
    fallbacks: int = 0
    copies: int = 0
    dropped: int = 0
    failed_copies: int = 0
    answered: deque[_Request] = field(default_factory=lambda: deque(maxlen=MAX_SAMPLES))
    compared: deque[_Copy] = field(default_factory=lambda: deque(maxlen=MAX_SAMPLES))


class CanaryFigures:
    """Is told of requests and copies; those of names that are not split are passed over."""

    def __init__(self, registry: Registry, now: Callable[[], float] = time.monotonic) -> None:
        self.now = now
        self._registry = registry
        self._seen: dict[str, dict[int, _Seen]] = {}
        self._salts: dict[str, str] = {}

    # ---- being told ----

    def served(self, key: AdapterKey | None, ttft: float | None, itl: float | None) -> None:
        """A request was answered: seconds to its first token, and from one to the next."""
        for seen in self._split(key):
            seen.requests += 1
            seen.answered.append(_Request(self.now(), failed=False, ttft=ttft, itl=itl))

    def failed(self, key: AdapterKey | None) -> None:
        """A request was answered by an error that is not the client's mistake."""
        for seen in self._split(key):
            seen.requests += 1
            seen.errors += 1
            seen.answered.append(_Request(self.now(), failed=True))

    def fell_back(self, key: AdapterKey) -> None:
        """A request that was drawn for ``key`` goes to the live version: ``key`` cannot be served."""
        for seen in self._split(key):
            seen.fallbacks += 1

    def compared(self, key: AdapterKey, *, ratio: float | None, share: float | None, exact: bool) -> None:
        """A shadow answered a copy. ``ratio``: of times per token; ``share`` of equal tokens, None: not comparable."""
        for seen in self._split(key):
            seen.copies += 1
            seen.compared.append(_Copy(self.now(), ratio, share, exact))

    def dropped(self, key: AdapterKey) -> None:
        """A copy gave way to clients."""
        for seen in self._split(key):
            seen.dropped += 1

    def copy_failed(self, key: AdapterKey) -> None:
        """A shadow could not answer a copy."""
        for seen in self._split(key):
            seen.failed_copies += 1

    # ---- being asked ----

    def of(self, name: str, version: int) -> _Seen:
        """All that was seen of a version."""
        return self._of(name).get(version, _Seen())

    def figures(self, name: str, version: int, seconds: float) -> Figures:
        """The requests of the last ``seconds``."""
        since = self.now() - seconds
        requests = [request for request in self.of(name, version).answered if request.at >= since]
        return Figures(
            requests=len(requests),
            errors=sum(request.failed for request in requests),
            ttft=tuple(sorted(request.ttft for request in requests if request.ttft is not None)),
            itl=tuple(sorted(request.itl for request in requests if request.itl is not None)),
        )

    def agreement(self, name: str, version: int, seconds: float) -> Agreement:
        """The copies of the last ``seconds``."""
        since = self.now() - seconds
        copies = [copy for copy in self.of(name, version).compared if copy.at >= since]
        comparable = [copy for copy in copies if copy.share is not None]
        return Agreement(
            shares=tuple(copy.share for copy in comparable if copy.share is not None),
            exact=sum(copy.exact for copy in comparable),
            ratios=tuple(sorted(copy.ratio for copy in copies if copy.ratio is not None)),
        )

    def prune(self) -> None:
        """Forget names that are split no more."""
        for name in [name for name in self._seen if not self._registry.traffic(name).is_split]:
            del self._seen[name], self._salts[name]

    # ---- inside ----

    def _split(self, key: AdapterKey | None) -> Iterator[_Seen]:
        """What is known of ``key``, or of each that it combines, if its name is split and it has a part in it."""
        for one in key.versions if key is not None else ():
            traffic = self._registry.traffic(one.name)
            if traffic.is_split and (
                one.version in traffic.versions or self._registry.live_number(one.name) == one.version
            ):
                yield self._of(one.name).setdefault(one.version, _Seen())

    def _of(self, name: str) -> dict[int, _Seen]:
        """By version, since canaries or a shadow of this name began."""
        salt = self._registry.traffic(name).salt
        if self._salts.get(name) != salt:
            self._salts[name], self._seen[name] = salt, {}
        return self._seen[name]
