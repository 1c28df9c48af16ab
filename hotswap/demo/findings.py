"""What the demo found out: scores, checks and latencies as plain data, to be judged, shown and written to JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hotswap.demo.asking import Answer
from hotswap.demo.comparison import Key, Verdict
from hotswap.demo.latency import Phase, latency_in
from hotswap.demo.tasks import Row, Task


@dataclass(frozen=True)
class Scored:
    """The answers of one model to the held-out rows of one task. ``who`` is ``base``, ``contacts v1`` and so on."""

    who: str
    task: Task
    rows: Sequence[Row]
    answers: Sequence[Answer]

    @property
    def right(self) -> int:
        """How many are right."""
        return sum(self.task.is_right(a.text, row.response) for row, a in zip(self.rows, self.answers, strict=True))

    @property
    def accuracy(self) -> float:
        """The share that is right."""
        return self.right / len(self.rows)


@dataclass(frozen=True)
class Check:
    """Something that must hold for the demo to succeed."""

    name: str
    ok: bool
    detail: str


@dataclass
class Findings:
    """Everything that was measured. ``answers`` holds every answer given under load, ``lone`` those given alone."""

    scores: dict[str, Scored] = field(default_factory=dict)
    phases: list[Phase] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    lone: dict[Key, Answer] = field(default_factory=dict)
    verdicts: Counter[Verdict] = field(default_factory=Counter)
    swap_seconds: dict[str, float] = field(default_factory=dict)
    server_exit_code: int | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    def phase(self, name: str) -> Phase:
        """The phase of that name."""
        return next(phase for phase in self.phases if phase.name == name)

    def served(self) -> list[str]:
        """All that served requests under load, the base first: its name is empty."""
        return sorted({answer.version for answer in self.answers})

    def latencies(self) -> dict[str, dict[str, dict[str, float | int | None]]]:
        """Latency by what was served and by phase."""
        return {
            version or "base": {
                phase.name: latency_in(phase, (a for a in self.answers if a.version == version)).as_dict()
                for phase in self.phases
            }
            for version in self.served()
        }

    def as_dict(self, checks: Sequence[Check]) -> dict[str, Any]:
        """For report.json."""
        return {
            "ok": all(check.ok for check in checks),
            "checks": [{"name": check.name, "ok": check.ok, "detail": check.detail} for check in checks],
            "accuracy": {
                key: {"task": s.task.name, "right": s.right, "of": len(s.rows)} for key, s in self.scores.items()
            },
            "latency_ms": self.latencies(),
            "requests": len(self.answers),
            "compared_with_alone": {verdict.value: self.verdicts[verdict] for verdict in Verdict},
            "swap_seconds": self.swap_seconds,
            "seconds": self.seconds,
            "answers": [_rows_as_dict(scored) for scored in self.scores.values()],
        }


def _rows_as_dict(scored: Scored) -> dict[str, Any]:
    rows = [
        {"prompt": row.prompt, "right": row.response, "answer": answer.text}
        for row, answer in zip(scored.rows, scored.answers, strict=True)
    ]
    return {"who": scored.who, "task": scored.task.name, "rows": rows}
