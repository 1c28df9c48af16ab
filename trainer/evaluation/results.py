"""What an evaluation gives as plain data: answers, scores with intervals, and comparisons.

``trainer.evaluation.evaluate.evaluate`` makes an ``Evaluation``, ``trainer.evaluation.scoring.compare`` sets two of the
same rows against each other. Knows neither HTTP nor any metric.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.evaluation.metrics.metric import Array


@dataclass(frozen=True)
class ScoredAnswer:
    """One answer. ``per_row`` has the metrics that are defined for a row alone, by name.

    ``finish_reason`` is the server's: ``stop``, or ``length`` when max_tokens cut the answer.
    """

    text: str
    finish_reason: str
    per_row: dict[str, float]


@dataclass(frozen=True)
class Score:
    """A metric over the rows, with its 95 % bootstrap interval. ``count`` is how many rows it could be computed on.

    ``note`` says what a reader should know of it, for instance how many rows were left out and why.
    """

    name: str
    value: float
    low: float
    high: float
    count: int
    higher_is_better: bool = True
    note: str = ""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """How one model answered. ``rows`` identifies the questions: only evaluations of the same can be compared.

    ``statistics`` has, for every metric, what each row adds to it: float64 [rows, k]; comparisons resample it.
    ``tokens_per_second`` counts the answers' tokens over the wall time of all requests together.
    """

    model: str
    scores: dict[str, Score]
    answers: tuple[ScoredAnswer, ...]
    seconds: float
    tokens_per_second: float
    rows: str
    statistics: Mapping[str, Array] = field(repr=False, default_factory=dict)

    @property
    def cut(self) -> int:
        """How many answers max_tokens cut off."""
        return sum(answer.finish_reason == "length" for answer in self.answers)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "model": self.model,
            "rows": len(self.answers),
            "cut_by_max_tokens": self.cut,
            "seconds": round(self.seconds, 3),
            "tokens_per_second": round(self.tokens_per_second, 1),
            "scores": {name: score_as_dict(score) for name, score in self.scores.items()},
        }


@dataclass(frozen=True)
class Difference:
    """One metric of two models on the same rows. ``difference`` is candidate minus live, ``low`` to ``high`` its
    95 % interval by paired bootstrap."""

    name: str
    candidate: float
    live: float
    difference: float
    low: float
    high: float
    count: int
    higher_is_better: bool = True

    @property
    def verdict(self) -> str:
        """``better`` or ``worse`` where the interval excludes 0, else ``not told apart``."""
        if self.low <= 0 <= self.high:
            return "not told apart"
        return "better" if (self.difference > 0) == self.higher_is_better else "worse"


@dataclass(frozen=True)
class Comparison:
    """Two evaluations of the same rows, metric by metric."""

    candidate: str
    live: str
    differences: dict[str, Difference]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        rows = {
            name: {
                "candidate": one.candidate,
                "live": one.live,
                "difference": one.difference,
                "low": one.low,
                "high": one.high,
                "rows": one.count,
                "higher_is_better": one.higher_is_better,
                "verdict": one.verdict,
            }
            for name, one in self.differences.items()
        }
        return {"candidate": self.candidate, "live": self.live, "metrics": rows}

    def table(self) -> str:
        """Plain text, one line a metric."""
        lines = [f"{'metric':<16} {'candidate':>10} {'live':>10} {'difference':>11}  95 % interval"]
        lines += [
            f"{one.name:<16} {one.candidate:>10.4f} {one.live:>10.4f} {one.difference:>+11.4f}  "
            f"{one.low:+.4f} to {one.high:+.4f}  {one.verdict}"
            for one in self.differences.values()
        ]
        return "\n".join([*lines, f"candidate: {self.candidate}  live: {self.live}"])


def score_as_dict(score: Score) -> dict[str, Any]:
    """For JSON."""
    found: dict[str, Any] = {"value": score.value, "low": score.low, "high": score.high, "rows": score.count}
    found["higher_is_better"] = score.higher_is_better
    return {**found, "note": score.note} if score.note else found
