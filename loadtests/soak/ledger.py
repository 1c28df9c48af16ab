"""What the soak has seen: which content each version has, what was answered, and everything that was not as it must be.

Asyncio-confined. Answers of a version are judged when its content is known: its upload may be answered after them.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np

from loadtests.soak.references import Answer, Package

SHOWN = 20  # of each sort of trouble
SEEN_SECONDS = 2.0  # within which other servers are promised to see a change
KILLS, HANGS, SERVER_KILLS = "kills", "hangs", "server kills"
DATABASE, READ_ONLY, AWAY = "database stops", "store read-only", "store away"
STORE = (READ_ONLY, AWAY)
ENDS_ANSWERS = (KILLS, HANGS, SERVER_KILLS)  # others let what is loaded be served on
_EXCUSES: dict[str | None, tuple[str, ...]] = {  # the code of an error, and which faults are good reasons for it
    None: (SERVER_KILLS,),  # no answer at all
    "engine_unavailable": ENDS_ANSWERS,
    "catalog_unavailable": (DATABASE,),
    "store_unavailable": STORE,
}


@dataclass(eq=False)
class Fault:
    """One that is under way, or has ended, on one server or (``place`` empty) on all. Monotonic seconds.

    Recovery counts from when what was broken was whole again; of an engine or a server that is its end itself.
    """

    kind: str
    place: str
    began: float
    whole: float
    ended: float | None = None

    def whole_again(self) -> None:
        """What was broken is whole; how long it takes to recover from that counts from now."""
        self.whole = time.monotonic()

    def overlaps(self, since: float, place: str, kinds: Collection[str] | None) -> bool:
        """Whether it was under way at some time since ``since``, there (empty: anywhere), and is one of ``kinds``."""
        here = not place or self.place in ("", place)
        return here and (kinds is None or self.kind in kinds) and (self.ended is None or self.ended >= since)


@dataclass
class Ledger:
    """One soak. ``wrong``, ``lost`` and ``leaked`` are sentences; all empty is what is wanted."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    leaked: list[str] = field(default_factory=list)
    gap: float = 0.0  # longest between two events of a bystander's stream, no fault of engines being under way
    recoveries: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))  # seconds, by kind of fault
    seen: list[float] = field(default_factory=list)  # seconds from a change's answer until another server had it
    _contents: dict[str, Package] = field(default_factory=dict)
    _unjudged: list[tuple[str, Answer, str]] = field(default_factory=list)
    _faults: list[Fault] = field(default_factory=list)

    # ---- versions ----

    def knows(self, version: str, package: Package) -> None:
        """``version`` (``name@number``) has this content, for good."""
        before = self._contents.setdefault(version, package)
        if before is not package:
            self.wrong.append(f"{version} was uploaded as {before.name} and then again as {package.name}")

    def content(self, version: str) -> Package | None:
        """The content of a version, once known."""
        return self._contents.get(version)

    # ---- answers ----

    def answered(self, adapter: str | None, version: str | None, answer: Answer, text: str) -> None:
        """Who asked for ``adapter`` (None: the base) was answered by ``version``; ``answer`` has the same prompt."""
        self.counts["answers"] += 1
        if (version or "").partition("@")[0] != (adapter or ""):
            self.wrong.append(f"{version or 'the base'} answered for {adapter or 'the base'}")
        elif version is None:
            self._compare("the base", answer, text)
        else:
            self._unjudged.append((version, answer, text))

    def judge(self) -> None:
        """Compare all answers whose version is known by now."""
        left = []
        for version, answer, text in self._unjudged:
            package = self._contents.get(version)
            if package is None:
                left.append((version, answer, text))
                continue
            wanted = next(known for known in package.answers if known.prompt == answer.prompt)
            self._compare(f"{version} ({package.name})", wanted, text)
        self._unjudged = left

    def judge_all(self) -> None:
        """As ``judge``; an answer of a version that nobody uploaded is wrong."""
        self.judge()
        self.wrong += [f"{version} answered, but was never uploaded" for version, _, _ in self._unjudged]
        self._unjudged = []

    def _compare(self, who: str, answer: Answer, text: str) -> None:
        self.counts["compared"] += 1
        if text != answer.text:
            self.wrong.append(f"{who} answered {text!r} instead of {answer.text!r} to {list(answer.prompt)}")

    # ---- faults ----

    def fault_begins(self, kind: str, place: str = "") -> Fault:
        """A server's engine, a server, or what all of them share is about to be hit."""
        self.counts[kind] += 1
        now = time.monotonic()
        self._faults.append(fault := Fault(kind, place, now, now))
        return fault

    def fault_ends(self, fault: Fault) -> None:
        """All is served as before."""
        fault.ended = time.monotonic()
        self.recoveries[fault.kind].append(fault.ended - fault.whole)

    def disturbed(self, since: float, place: str = "", kinds: Collection[str] | None = None) -> bool:
        """Whether a fault, of some ``kinds``, was under way there at some time since ``since`` (monotonic)."""
        return any(fault.overlaps(since, place, kinds) for fault in self._faults)

    def excuses(self, code: str | None, since: float, place: str) -> bool:
        """Whether a server may have answered so (None: not at all) to what it was sent at ``since``."""
        return code in _EXCUSES and self.disturbed(since, place, _EXCUSES[code])

    def saw_gap(self, began: float, seconds: float) -> None:
        """A bystander waited so long for the next event."""
        if not self.disturbed(began, kinds=ENDS_ANSWERS):
            self.gap = max(self.gap, seconds)

    # ---- the verdict ----

    @property
    def sound(self) -> bool:
        """Whether nothing was wrong, lost or leaked, and something was compared at all."""
        return not (self.wrong or self.lost or self.leaked) and self.counts["compared"] > 0

    def report(self) -> dict[str, object]:
        """All of it, for a file."""
        return {
            "sound": self.sound,
            **self._troubles(),
            "counts": dict(sorted(self.counts.items())),
            "longest_gap_seconds": round(self.gap, 3),
            "recovery_seconds": {kind: _spread(times) for kind, times in sorted(self.recoveries.items())},
            "seen_elsewhere_seconds": {**_spread(self.seen), "late": sum(s > SEEN_SECONDS for s in self.seen)},
        }

    def text(self) -> str:
        """All of it, for a person."""
        lines = [", ".join(f"{count} {name}" for name, count in sorted(self.counts.items()))]
        lines.append(f"longest gap of a bystander's stream {self.gap:.2f} s")
        spreads = {f"recovery from {kind}": times for kind, times in sorted(self.recoveries.items())}
        for name, times in {**spreads, "changes seen by another server": self.seen}.items():
            if times:
                lines.append(
                    f"{name}: " + ", ".join(f"{key} {value:g}" for key, value in _spread(times).items()) + " s"
                )
        for name, trouble in self._troubles().items():
            lines.append(f"{len(trouble)} {name}")
            lines += [f"  {sentence}" for sentence in trouble[:SHOWN]]
        return "\n".join(lines)

    def _troubles(self) -> dict[str, list[str]]:
        return {"wrong": self.wrong, "lost": self.lost, "leaked": self.leaked}


def _spread(times: list[float]) -> dict[str, float]:
    """How many there are, and their middle and upper end."""
    if not times:
        return {"count": 0}
    p50, p99 = np.percentile(times, (50, 99))
    return {"count": len(times), "p50": round(float(p50), 3), "p99": round(float(p99), 3), "max": round(max(times), 3)}
