"""The versions of one adapter name: which is live, which was live before, which wait to be judged.

Plain bookkeeping; knows no other names, no requests, no files, no engine and no database.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import msgspec

from adapters.package.added_tokens import AddedToken
from adapters.package.chat_template import NO_CHAT, PackageChat
from adapters.package.head import PackageHead
from adapters.package.manifest import Manifest
from adapters.package.sentence_model import SentenceModel
from server.adapter_key import AdapterKey
from server.catalog.traffic import NO_SPLIT, Traffic, after_change, forgotten
from server.limits import Limits

MAX_HISTORY = 100  # versions that rollbacks can go back over


class VersionState(StrEnum):
    """Where a version stands.

    Serving its name; answering a share of its requests; getting copies of them alone; resident but answering only to
    ``name@version``, never having been live; finishing its last requests; only kept on disk; or, whichever of these it
    was, not to be loaded from there.
    """

    LIVE = "live"
    CANARY = "canary"
    SHADOW = "shadow"
    CANDIDATE = "candidate"
    DRAINING = "draining"
    STORED = "stored"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class AdapterVersion:
    """What is known of one version; never changes. ``created`` is in Unix seconds, ``nbytes`` those of its tensors.

    ``vocab_size`` is set when it is not the base's; ``tokens`` are those that the adapter adds to the base's tokenizer,
    ``chat`` its own chat template and end tokens, ``head`` what its own head answers with, where it has one,
    ``sentence_model`` what sentence-transformers wrote beside it.
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
    head: PackageHead | None = None
    sentence_model: SentenceModel | None = None
    manifest: Manifest | None = None
    warnings: tuple[str, ...] = ()

    def has_content_of(self, other: AdapterVersion) -> bool:
        """Whether it answers as ``other`` does, by its weights, tokens, conversations, labels and pooling."""
        mine = self.key.digest, self.tokens, self.chat, self.head, self.sentence_model
        return mine == (other.key.digest, other.tokens, other.chat, other.head, other.sentence_model)


class NameSettings(msgspec.Struct, frozen=True, omit_defaults=True):
    """What an operator set for one name. ``retention`` is versions kept, ``weight`` its share where many want to run.

    ``pinned`` versions stay in memory; those idle for ``idle_ttl_seconds`` leave it. None: the server's default.
    """

    pinned: bool = False
    weight: float = 1.0
    priority: int = 0
    retention: int | None = None
    idle_ttl_seconds: float | None = None
    limits: Limits = Limits()


class NameRecord(msgspec.Struct, omit_defaults=True):
    """What outlives the process of one name, beside its versions. ``live`` is the number that the name means.

    It is None before a version has gone live. ``removed``: the name was served once and has been taken away. ``last``
    is the highest number given out, ``served`` those that were live before the live one, in that order; may repeat.
    ``traffic`` says which others answer requests.
    """

    last: int = 0
    live: int | None = None
    removed: bool = False
    candidates: set[int] = set()
    served: list[int] = []
    settings: NameSettings = NameSettings()
    traffic: Traffic = NO_SPLIT


class VersionHistory:
    """One name: its record and the versions that are kept, as they were at ``revision`` of the catalog."""

    def __init__(
        self, record: NameRecord | None = None, versions: Iterable[AdapterVersion] = (), *, revision: int = 0
    ) -> None:
        self.record = record or NameRecord()
        self.revision = revision
        self._known = {version.key.version: version for version in versions}

    @property
    def live(self) -> int | None:
        """The number that the name means."""
        return self.record.live

    @property
    def candidates(self) -> Collection[int]:
        """Numbers of the versions that wait to be judged."""
        return self.record.candidates

    @property
    def traffic(self) -> Traffic:
        """How the requests are shared out; changed by ``share_out``."""
        return self.record.traffic

    def to_be_resident(self) -> list[AdapterVersion]:
        """The versions that answer requests, or wait to be judged; the live one first."""
        numbers = dict.fromkeys((self.live, *sorted({*self.candidates, *self.traffic.versions})))
        return [version for number in numbers if (version := self.get(number)) is not None]

    @property
    def is_blank(self) -> bool:
        """Whether it is as if the name had never been tried."""
        return self.record == NameRecord() and not self._known

    def all(self) -> list[AdapterVersion]:
        """Every version that is kept, oldest first."""
        return [version for _, version in sorted(self._known.items())]

    def get(self, number: int | None) -> AdapterVersion | None:
        """One version, if it is kept."""
        return None if number is None else self._known.get(number)

    def reserve(self) -> int:
        """The number of a next version, which is not kept yet. Numbers given out are not used twice."""
        self.record.last += 1
        return self.record.last

    def release(self, number: int) -> None:
        """Give back the number of a version that was refused."""
        assert number not in self._known, f"version {number} is kept"
        if self.record.last == number:
            self.record.last -= 1

    def add(self, version: AdapterVersion, *, candidate: bool = False) -> AdapterVersion | None:
        """Keep a version whose number was reserved; its name serves it, unless as a candidate. Returns the replaced."""
        number = version.key.version
        self._known[number] = version
        if candidate:
            self.record.candidates.add(number)
            return None
        return self.activate(number)

    def move(self, version: AdapterVersion) -> None:
        """A version that is kept has its files elsewhere now."""
        assert version.key.version in self._known, f"{version.key} is not kept"
        self._known[version.key.version] = version

    def activate(self, number: int) -> AdapterVersion | None:
        """Make a version live; returns the one it replaces."""
        replaced = self.get(self.live)
        if self.live is not None:
            self.record.served = [*self.record.served, self.live][-MAX_HISTORY:]
        self._go_live(number)
        return replaced

    def roll_back(self, number: int) -> AdapterVersion | None:
        """Make a version that was live before live again, and forget what came after it; returns the replaced one."""
        replaced, served = self.get(self.live), self.record.served
        if number in served:
            last = len(served) - 1 - served[::-1].index(number)
            self.record.served = served[:last]
        self._go_live(number)
        return replaced

    def before(self) -> int | None:
        """The version that was live before the live one, and is still kept."""
        return next((number for number in reversed(self.record.served) if number != self.live), None)

    def superfluous(self, most: int, used: Collection[int] = ()) -> list[AdapterVersion]:
        """Those to delete so that at most ``most`` are kept, oldest first.

        They are versions that nobody uses: neither live, nor ``used``, nor a candidate, nor the one to go back to, nor
        has one a share of the requests.
        """
        kept = {self.live, self.before(), *self.candidates, *used, *self.traffic.versions}
        idle = [version for version in self.all() if version.key.version not in kept]
        return idle[: max(len(self._known) - most, 0)]

    def forget(self, number: int) -> AdapterVersion:
        """Drop a version that is not live."""
        assert number != self.live, f"version {number} is live"
        self.record.candidates.discard(number)
        self.record.served = [served for served in self.record.served if served != number]
        self.record.traffic = forgotten(self.traffic, number, time.time())
        return self._known.pop(number)

    def remove(self) -> list[AdapterVersion]:
        """Leave a tombstone; returns the versions."""
        gone = self.all()
        self.record = NameRecord(last=self.record.last, removed=self.record.removed or self.live is not None)
        self._known = {}
        return gone

    def share_out(self, traffic: Traffic) -> None:
        """Let requests be drawn by ``traffic``."""
        self.record.traffic = traffic

    def _go_live(self, number: int) -> None:
        self.record.live, self.record.removed = number, False
        self.record.traffic = after_change(self.traffic, number, time.time())
        self.record.candidates.discard(number)
