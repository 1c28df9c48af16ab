"""Gates: what a candidate has to score before it may go live, as written on a command line, and whether it holds.

A gate compares a metric of the candidate with a number, or with the same metric of the live version. What counts is
the value itself; whether the data can tell it from the bound is said by the 95 % interval beside it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.errors import PublishError
from trainer.evaluation.results import Comparison, Evaluation

_NUMBER = r"(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?"
_GATE = re.compile(
    rf"(?P<metric>\w+)\s*(?P<relation>>=|<=|>|<)\s*"
    rf"(?:(?P<other>live|majority)\s*(?:(?P<sign>[-+])\s*(?P<offset>{_NUMBER}))?|(?P<bound>-?{_NUMBER}))"
)
_ROUNDING = 1e-9  # 0.8 - 0.01 is not 0.79 to a computer
FORM = "write it as METRIC>=live, METRIC>=live-0.01, METRIC>majority+0.1 or METRIC>=0.8"
LIVE, MAJORITY = "live", "majority"


@dataclass(frozen=True)
class Gate:
    """``metric relation bound``. With ``other`` the bound is what that scores, plus ``bound``: ``live``, the version
    that is, or ``majority``, the same class (or the mean) for every row."""

    metric: str
    relation: str
    bound: float
    other: str = ""

    def __str__(self) -> str:
        offset = "" if self.other and not self.bound else f"{self.bound:+.12g}" if self.other else f"{self.bound:.12g}"
        return f"{self.metric}{self.relation}{self.other}{offset}"

    @property
    def upwards(self) -> bool:
        """Whether more is better."""
        return self.relation.startswith(">")

    def holds(self, distance: float) -> bool:
        """Whether a candidate passes that is ``distance`` above the bound (below it where less is better)."""
        return distance >= -_ROUNDING if self.relation.endswith("=") else distance > _ROUNDING


@dataclass(frozen=True)
class Judgement:
    """What came of one gate. ``value`` is the candidate's, ``low`` to ``high`` the 95 % interval of ``value`` minus
    ``bound``; with a gate on live it is that of the paired difference. ``certain``: the interval is on one side."""

    gate: Gate
    passed: bool
    value: float
    bound: float
    low: float
    high: float
    certain: bool
    rows: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        figures = {"value": self.value, "bound": self.bound, "difference": self.value - self.bound}
        interval = {"low": self.low, "high": self.high, "certain": self.certain, "rows": self.rows}
        return {"gate": str(self.gate), "passed": self.passed, **figures, **interval}

    def __str__(self) -> str:
        against = f"{self.gate.other}'s" if self.gate.other and not self.gate.bound else "the bound"
        sure = "certain" if self.certain else "the rows cannot tell them apart"
        if self.low == self.high:
            sure = "all rows alike, so the interval says little"
        return (
            f"{'holds' if self.passed else 'FAILS'}  {self.gate}: {self.value:.4f} against {against} {self.bound:.4f}, "
            f"{self.value - self.bound:+.4f} (95 %: {self.low:+.4f} to {self.high:+.4f}, {self.rows} rows; {sure})"
        )


def parse_gates(texts: Sequence[str]) -> tuple[Gate, ...]:
    """The gates of command-line options, each of which may name several, separated by commas. Raises PublishError."""
    gates = [_parse(part.strip()) for text in texts for part in text.split(",") if part.strip()]
    if not gates:
        raise PublishError(f"--gate says nothing; {FORM}")
    return tuple(dict.fromkeys(gates))


def judge(
    gates: Sequence[Gate], candidate: Evaluation, comparisons: Mapping[str, Comparison], *, confident: bool
) -> tuple[Judgement, ...]:
    """Each gate on what was measured, against what it names of ``comparisons``.

    With ``confident`` the whole interval has to be on the right side.
    """
    return tuple(_judge(gate, candidate, comparisons, confident) for gate in gates)


def _judge(gate: Gate, candidate: Evaluation, comparisons: Mapping[str, Comparison], confident: bool) -> Judgement:
    if gate.other:
        found = comparisons[gate.other].differences[gate.metric]
        value, bound = found.candidate, found.live + gate.bound
        low, high, rows = found.low - gate.bound, found.high - gate.bound, found.count
    else:
        score = candidate.scores[gate.metric]
        value, bound = score.value, gate.bound
        low, high, rows = score.low - bound, score.high - bound, score.count
    # seen from the bound, towards where the candidate should be
    point, worst, best = (value - bound, low, high) if gate.upwards else (bound - value, -high, -low)
    certain = gate.holds(worst) or not gate.holds(best)
    passed = gate.holds(worst if confident else point)
    return Judgement(gate, passed, value, bound, low, high, certain, rows)


def _parse(text: str) -> Gate:
    from trainer.evaluation.metrics import find_metrics

    match = _GATE.fullmatch(text)
    if match is None:
        raise PublishError(f"--gate {text!r} is not a gate; {FORM}")
    (metric,) = find_metrics([match["metric"]])
    sign = -1.0 if match["sign"] == "-" else 1.0
    bound = float(match["bound"]) if match["bound"] else sign * float(match["offset"] or 0)
    gate = Gate(metric.name, match["relation"], bound, match["other"] or "")
    if gate.upwards != metric.higher_is_better:
        better, right = ("higher", ">=") if metric.higher_is_better else ("lower", "<=")
        raise PublishError(f"--gate {text!r}: {metric.name} is better when {better}; write {metric.name}{right}...")
    top = math.inf if metric.highest is None else metric.highest
    if not math.isfinite(bound) or abs(bound) > top:
        raise PublishError(f"--gate {text!r}: {metric.name} goes from 0 to {top:g}")
    return gate
