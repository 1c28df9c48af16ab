"""What the soak has seen: which content each version has, what was answered, and everything that was not as it must be.

Asyncio-confined. Answers of a version are judged when its content is known: its upload may be answered after them.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field

from loadtests.soak.references import Answer, Package

SHOWN = 20  # of each sort of trouble


@dataclass
class Ledger:
    """One soak. ``wrong``, ``lost`` and ``leaked`` are sentences; all empty is what is wanted."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    leaked: list[str] = field(default_factory=list)
    gap: float = 0.0  # longest between two events of a bystander's stream, no fault being under way
    outage: float = 0.0  # longest from a fault until the server was ready again
    _contents: dict[str, Package] = field(default_factory=dict)
    _unjudged: list[tuple[str, Answer, str]] = field(default_factory=list)
    _fault_began: float | None = None
    _fault_ended: float = float("-inf")

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

    def fault_begins(self, kind: str) -> None:
        """The engine is about to be hit."""
        self.counts[kind] += 1
        self._fault_began = time.monotonic()

    def fault_ends(self) -> None:
        """The server is ready again."""
        assert self._fault_began is not None
        self.outage = max(self.outage, time.monotonic() - self._fault_began)
        self._fault_began, self._fault_ended = None, time.monotonic()

    def disturbed(self, since: float) -> bool:
        """Whether a fault was under way at some time since ``since`` (monotonic)."""
        return self._fault_began is not None or self._fault_ended >= since

    def saw_gap(self, began: float, seconds: float) -> None:
        """A bystander waited so long for the next event."""
        if not self.disturbed(began):
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
            "longest_outage_seconds": round(self.outage, 3),
        }

    def text(self) -> str:
        """All of it, for a person."""
        lines = [", ".join(f"{count} {name}" for name, count in sorted(self.counts.items()))]
        lines.append(f"longest gap of a bystander's stream {self.gap:.2f} s, longest outage {self.outage:.1f} s")
        for name, trouble in self._troubles().items():
            lines.append(f"{len(trouble)} {name}")
            lines += [f"  {sentence}" for sentence in trouble[:SHOWN]]
        return "\n".join(lines)

    def _troubles(self) -> dict[str, list[str]]:
        return {"wrong": self.wrong, "lost": self.lost, "leaked": self.leaked}
