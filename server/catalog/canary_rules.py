"""When a canary has to go: its rules, and what figures say to them. Pure: no requests, no clock and no registry."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import msgspec

from adapters.quoting import quote

MAX_MIN_REQUESTS = 1000  # a window keeps no more
_NUMBER = r"(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?"
_GATE = re.compile(
    rf"(?P<metric>\w{{1,64}})\s*(?P<relation>>=|<=|>|<)\s*"
    rf"(?:(?P<live>live)\s*(?:(?P<sign>[-+])\s*(?P<offset>{_NUMBER}))?|(?P<bound>-?{_NUMBER}))"
)
_ROUNDING = 1e-9  # 0.8 - 0.01 is not 0.79 to a computer


class Rules(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What ends a canary by itself; None: nothing. All but ``gates`` look at the requests of ``window_seconds``.

    No rule judges by fewer than ``min_requests`` of them, of the live version where it compares with that. An error is
    an answer that is the server's fault (5xx). A ratio is the canary's latency over the live version's: to the first
    token (ttft) or between tokens (itl, a request's mean). ``min_agreement``, ``min_exact`` and
    ``max_shadow_latency_ratio`` judge by a shadow of the same version. ``gates``, like ``exact_match>=live-0.01``,
    judge by the scores that an evaluator has posted.
    """

    min_requests: int = 50
    window_seconds: float = 300.0
    max_error_rate: float | None = None
    max_error_rate_above_live: float | None = None
    max_ttft_p50_ratio: float | None = None
    max_ttft_p95_ratio: float | None = None
    max_itl_p50_ratio: float | None = None
    max_itl_p95_ratio: float | None = None
    min_agreement: float | None = None
    min_exact: float | None = None
    max_shadow_latency_ratio: float | None = None
    gates: tuple[str, ...] = ()

    @property
    def need_shadow(self) -> bool:
        """Whether some of them judge by a shadow."""
        return any(bound is not None for bound in (self.min_agreement, self.min_exact, self.max_shadow_latency_ratio))


@dataclass(frozen=True)
class Gate:
    """``metric relation bound``; with ``live`` the bound is what the live version scores, plus ``bound``."""

    metric: str
    relation: str
    bound: float
    live: bool

    def holds(self, value: float, bound: float) -> bool:
        """Whether ``value`` is on the right side of ``bound``."""
        distance = value - bound if self.relation.startswith(">") else bound - value
        return distance >= -_ROUNDING if self.relation.endswith("=") else distance > _ROUNDING


def parse_gate(text: str) -> Gate:
    """The gate that ``text`` writes. Raises ValueError saying how to write one."""
    match = _GATE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{quote(text)} is not a gate; write it as METRIC>=live, METRIC>=live-0.01 or METRIC>=0.8")
    sign = -1.0 if match["sign"] == "-" else 1.0
    bound = float(match["bound"]) if match["bound"] else sign * float(match["offset"] or 0)
    if not math.isfinite(bound):
        raise ValueError(f"{quote(text)} is not a gate: its number is too large")
    return Gate(match["metric"], match["relation"], bound, live=match["live"] is not None)


@dataclass(frozen=True)
class Figures:
    """The requests of one version in a window. ``ttft`` and ``itl`` are in seconds, sorted."""

    requests: int = 0
    errors: int = 0
    ttft: tuple[float, ...] = ()
    itl: tuple[float, ...] = ()

    @property
    def error_rate(self) -> float | None:
        """Errors by requests; None without any."""
        return self.errors / self.requests if self.requests else None


@dataclass(frozen=True)
class Agreement:
    """The copies that a shadow answered in a window. ``shares`` are those of equal tokens, one for each comparable
    copy, of which ``exact`` were equal as a whole; ``ratios`` those of the times per token, sorted."""

    shares: tuple[float, ...] = ()
    exact: int = 0
    ratios: tuple[float, ...] = ()

    @property
    def mean(self) -> float | None:
        """The mean share of equal tokens."""
        return sum(self.shares) / len(self.shares) if self.shares else None

    @property
    def exact_share(self) -> float | None:
        """The share of answers that were equal as a whole."""
        return self.exact / len(self.shares) if self.shares else None


@dataclass(frozen=True)
class Verdict:
    """What one rule says. ``value`` None: it does not judge yet, for ``count`` requests (scores) are too few."""

    rule: str
    bound: float
    value: float | None
    count: int
    breached: bool = False

    def __str__(self) -> str:
        over = f" over {self.count} requests" if self.count else ""
        value = "not known yet" if self.value is None else f"{self.value:.4g}{over}"
        return f"{self.rule} is {value}, the bound is {self.bound:.4g}"


def percentile(values: tuple[float, ...], percent: int) -> float | None:
    """The smallest of sorted ``values`` that ``percent`` percent of them do not exceed; None without any."""
    return values[max(math.ceil(len(values) * percent / 100), 1) - 1] if values else None


Scores = Mapping[str, float]


@dataclass(frozen=True)
class Evidence:
    """What is known of a version: its requests, as a shadow, and by an evaluator."""

    figures: Figures = Figures()
    agreement: Agreement = Agreement()
    scores: Scores = field(default_factory=dict)


def judge(rules: Rules, canary: Evidence, live: Evidence) -> list[Verdict]:
    """What each rule that is set says of a canary."""
    return [
        *_on_errors(rules, canary.figures, live.figures),
        *_on_latency(rules, canary.figures, live.figures),
        *_on_shadow(rules, canary.agreement),
        *(_on_gate(text, canary.scores, live.scores) for text in rules.gates),
    ]


def _on_errors(rules: Rules, canary: Figures, live: Figures) -> Iterator[Verdict]:
    rate, count = canary.error_rate, canary.requests
    if (bound := rules.max_error_rate) is not None:
        yield _at_most("max_error_rate", bound, rate if count >= rules.min_requests else None, count)
    if (bound := rules.max_error_rate_above_live) is not None:
        fewest, others = min(count, live.requests), live.error_rate
        above = rate - others if rate is not None and others is not None and fewest >= rules.min_requests else None
        yield _at_most("max_error_rate_above_live", bound, above, fewest)


def _on_latency(rules: Rules, canary: Figures, live: Figures) -> Iterator[Verdict]:
    for rule, percent, ours, theirs in (
        ("max_ttft_p50_ratio", 50, canary.ttft, live.ttft),
        ("max_ttft_p95_ratio", 95, canary.ttft, live.ttft),
        ("max_itl_p50_ratio", 50, canary.itl, live.itl),
        ("max_itl_p95_ratio", 95, canary.itl, live.itl),
    ):
        bound: float | None = getattr(rules, rule)
        if bound is None:
            continue
        fewest = min(len(ours), len(theirs))
        above, below = percentile(ours, percent), percentile(theirs, percent)
        ratio = above / below if above is not None and below and fewest >= rules.min_requests else None
        yield _at_most(rule, bound, ratio, fewest)


def _on_shadow(rules: Rules, shadow: Agreement) -> Iterator[Verdict]:
    compared = len(shadow.shares)
    enough = compared >= rules.min_requests
    if (bound := rules.min_agreement) is not None:
        yield _at_least("min_agreement", bound, shadow.mean if enough else None, compared)
    if (bound := rules.min_exact) is not None:
        yield _at_least("min_exact", bound, shadow.exact_share if enough else None, compared)
    if (bound := rules.max_shadow_latency_ratio) is not None:
        count = len(shadow.ratios)
        ratio = percentile(shadow.ratios, 50) if count >= rules.min_requests else None
        yield _at_most("max_shadow_latency_ratio", bound, ratio, count)


def _on_gate(text: str, scores: Scores, live_scores: Scores) -> Verdict:
    gate = parse_gate(text)
    value = scores.get(gate.metric)
    base = live_scores.get(gate.metric) if gate.live else 0.0
    bound = gate.bound if base is None else base + gate.bound
    if value is None or base is None:
        return Verdict(text, bound, None, 0)
    return Verdict(text, bound, value, 0, breached=not gate.holds(value, bound))


def _at_most(rule: str, bound: float, value: float | None, count: int) -> Verdict:
    return Verdict(rule, bound, value, count, breached=value is not None and value > bound + _ROUNDING)


def _at_least(rule: str, bound: float, value: float | None, count: int) -> Verdict:
    return Verdict(rule, bound, value, count, breached=value is not None and value < bound - _ROUNDING)
