"""The versions of one adapter name: which is live, which was live before, which wait to be judged.

Plain bookkeeping in memory; knows no other names, no requests, no files and no engine.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from adapters.package.added_tokens import AddedToken
from adapters.package.chat_template import NO_CHAT, PackageChat
from adapters.package.manifest import Manifest
from server.adapter_key import AdapterKey

MAX_HISTORY = 100  # versions that rollbacks can go back over


class VersionState(StrEnum):
    """Where a version stands.

    Serving its name; resident but answering only to ``name@version``, never having been live; finishing its last
    requests; only kept on disk; or, whichever of these it was, not to be loaded from there.
    """

    LIVE = "live"
    CANDIDATE = "candidate"
    DRAINING = "draining"
    STORED = "stored"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class AdapterVersion:
    """What is known of one version; never changes. ``created`` is in Unix seconds, ``nbytes`` those of its tensors.

    ``vocab_size`` is set when it is not the base's; ``tokens`` are those that the adapter adds to the base's tokenizer,
    ``chat`` its own chat template and end tokens.
    """

    key: AdapterKey
    path: Path
    kind: str
    nbytes: int
    num_virtual_tokens: int
    created: float
    vocab_size: int | None = None
    tokens: tuple[AddedToken, ...] = ()
    chat: PackageChat = NO_CHAT
    manifest: Manifest | None = None
    warnings: tuple[str, ...] = ()


class VersionHistory:
    """One name. ``live`` is the number that the name means: one assignment changes it.

    It is None before a version has gone live. ``removed``: the name was served once and has been taken away. A version
    that failed keeps its place, so that it is served again once it could be loaded; ``failures`` has the reasons.
    """

    def __init__(self, *, last: int = 0, removed: bool = False) -> None:
        self.live: int | None = None
        self.removed = removed
        self.last = last
        self.candidates: set[int] = set()
        self.failures: dict[int, str] = {}
        self._known: dict[int, AdapterVersion] = {}
        self._draining: set[int] = set()
        self._served: list[int] = []  # that were live before the live one, in that order; may repeat

    def all(self) -> list[AdapterVersion]:
        """Every version that is kept, oldest first."""
        return [version for _, version in sorted(self._known.items())]

    def get(self, number: int | None) -> AdapterVersion | None:
        """One version, if it is kept."""
        return None if number is None else self._known.get(number)

    def state(self, number: int) -> VersionState:
        """Where a version that is kept stands."""
        if number in self.failures:
            return VersionState.FAILED
        if number == self.live:
            return VersionState.LIVE
        if number in self.candidates:
            return VersionState.CANDIDATE
        return VersionState.DRAINING if number in self._draining else VersionState.STORED

    def reserve(self, *, candidate: bool) -> int:
        """The number of a next version, which is not kept yet."""
        self.last += 1
        if candidate:
            self.candidates.add(self.last)
        return self.last

    def release(self, number: int) -> None:
        """Give back the number of a version that was refused."""
        assert number not in self._known, f"version {number} is kept"
        self.candidates.discard(number)
        if self.last == number:
            self.last -= 1

    def add(self, version: AdapterVersion) -> None:
        """Keep a version whose number was reserved."""
        self._known[version.key.version] = version

    def fail(self, number: int, reason: str) -> None:
        """A version that is kept could not be loaded."""
        self.failures[number] = reason

    def heal(self, version: AdapterVersion) -> None:
        """A version that is kept is resident again, from where ``version`` says."""
        self._known[version.key.version] = version
        self.failures.pop(version.key.version, None)

    def activate(self, number: int) -> AdapterVersion | None:
        """Make a version live; returns the one it replaces."""
        replaced = self.get(self.live)
        if self.live is not None:
            self._served = [*self._served, self.live][-MAX_HISTORY:]
        self._go_live(number)
        return replaced

    def roll_back(self, number: int) -> AdapterVersion | None:
        """Make a version that was live before live again, and forget what came after it; returns the replaced one."""
        replaced = self.get(self.live)
        if number in self._served:
            last = len(self._served) - 1 - self._served[::-1].index(number)
            self._served = self._served[:last]
        self._go_live(number)
        return replaced

    def before(self) -> int | None:
        """The version that was live before the live one, and is still kept."""
        return next((number for number in reversed(self._served) if number != self.live), None)

    def superfluous(self, most: int) -> list[AdapterVersion]:
        """Those to delete so that at most ``most`` are kept, oldest first.

        They are versions that nobody uses: neither live, nor draining, nor a candidate, nor the one to go back to.
        """
        kept = {self.live, self.before(), *self.candidates, *self._draining}
        idle = [version for version in self.all() if version.key.version not in kept]
        return idle[: max(len(self._known) - most, 0)]

    def drained(self, number: int) -> None:
        """The version's last request has ended."""
        self._draining.discard(number)

    def forget(self, number: int) -> None:
        """Drop a version that is not live."""
        assert number != self.live, f"version {number} is live"
        del self._known[number]
        self._draining.discard(number)
        self.candidates.discard(number)
        self.failures.pop(number, None)
        self._served = [served for served in self._served if served != number]

    def _go_live(self, number: int) -> None:
        replaced, self.live, self.removed = self.live, number, False
        self._draining.discard(number)
        self.candidates.discard(number)
        if replaced is not None:
            self._draining.add(replaced)
