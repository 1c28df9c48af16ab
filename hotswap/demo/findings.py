"""What the demo found out: scores, latencies and comparisons as plain data, to be judged, shown and written to JSON.

An answer given under load is compared with the one that the same model gives alone. Two greedy runs may part where two
tokens are equally likely up to rounding: another batch adds numbers up in another order. From there on they cannot be
compared, so an answer counts as mixed only if it parts from the lone one at a token that rounding does not explain.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from itertools import zip_longest
from typing import Any

from hotswap.demo.asking import Answer, Token
from hotswap.demo.tasks import Task, TaskRow


@dataclass(frozen=True)
class Phase:
    """A named stretch of time, in ``time.perf_counter`` seconds."""

    name: str
    start: float
    end: float

    def holds(self, moment: float) -> bool:
        """Whether ``moment`` lies in this phase."""
        return self.start <= moment < self.end


@dataclass(frozen=True)
class Latency:
    """Figures in ms over the requests that began, and the gaps that ended, in one phase; None where there were none."""

    requests: int
    ttft_p50: float | None
    ttft_p95: float | None
    itl_p50: float | None
    itl_p95: float | None
    itl_max: float | None

    def as_dict(self) -> dict[str, float | int | None]:
        """For JSON."""
        return asdict(self)


def latency_in(phase: Phase, answers: Iterable[Answer]) -> Latency:
    """The latencies of ``answers`` in ``phase``."""
    first: list[float] = []
    gaps: list[float] = []
    for answer in answers:
        if answer.stamps and phase.holds(answer.start):
            first.append(answer.stamps[0] - answer.start)
        pairs = zip(answer.stamps, answer.stamps[1:], strict=False)
        gaps += [after - before for before, after in pairs if phase.holds(after)]
    return Latency(
        requests=len(first),
        ttft_p50=_milliseconds(first, 50),
        ttft_p95=_milliseconds(first, 95),
        itl_p50=_milliseconds(gaps, 50),
        itl_p95=_milliseconds(gaps, 95),
        itl_max=_milliseconds(gaps, 100),
    )


def _milliseconds(seconds: Sequence[float], percent: int) -> float | None:
    if not seconds:
        return None
    return round(percentile(seconds, percent) * 1e3, 1)


def percentile(values: Sequence[float], percent: int) -> float:
    """The percentile by linear interpolation."""
    if len(values) == 1 or percent == 100:
        return max(values)
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


NEAR_TIE = 0.1  # difference of log-probabilities: the rounding of bf16 reaches a few hundredths


class Verdict(StrEnum):
    """What a comparison says."""

    SAME = "same"
    ROUNDING = "rounding"
    MIXED = "mixed"


def compare_answers(loaded: Answer, alone: Answer) -> Verdict:
    """Compare two greedy answers of one model to one prompt, token by token."""
    for ours, theirs in zip_longest(loaded.tokens, alone.tokens):
        if ours is None or theirs is None:
            longer = ours or theirs
            return Verdict.ROUNDING if _end_was_near(longer) else Verdict.MIXED
        if ours.text != theirs.text:
            near = _near(theirs, ours.text) and _near(ours, theirs.text)
            return Verdict.ROUNDING if near else Verdict.MIXED
    return Verdict.SAME


def _near(token: Token, other: str) -> bool:
    """Whether ``other`` was about as likely as ``token`` where that was chosen."""
    return token.logprob - token.top.get(other, float("-inf")) <= NEAR_TIE


def _end_was_near(token: Token | None) -> bool:
    assert token is not None  # zip_longest gives one of the two
    return any(_near(token, other) for other in token.top if other.startswith("<|"))


@dataclass(frozen=True)
class AnswerKey:
    """What a greedy answer is determined by: what served it (the base's name for the base) and what was asked."""

    served_by: str
    prompt: str
    max_tokens: int
    ignore_eos: bool


def key_of(answer: Answer) -> AnswerKey:
    """The key of an answer."""
    asked = answer.question
    return AnswerKey(answer.version or asked.model, asked.prompt, asked.max_tokens, asked.ignore_eos)


def compare_all(loaded: Iterable[Answer], alone: Mapping[AnswerKey, Answer]) -> Counter[Verdict]:
    """Verdicts on all complete ``loaded`` answers that have a lone one."""
    pairs = ((answer, alone.get(key_of(answer))) for answer in loaded if answer.error is None)
    return Counter(compare_answers(answer, other) for answer, other in pairs if other is not None)


@dataclass(frozen=True)
class Scored:
    """The answers of one model to the held-out rows of one task. ``who`` is ``base``, ``contacts v1`` and so on."""

    who: str
    task: Task
    rows: Sequence[TaskRow]
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
    lone: dict[AnswerKey, Answer] = field(default_factory=dict)
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
