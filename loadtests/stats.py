"""Figures from outcomes: rates, latency percentiles, errors by type. It knows nothing of how they are shown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from loadtests.client import Outcome

PERCENTILES = (50, 90, 95, 99)


def percentiles_ms(seconds: Sequence[float]) -> dict[str, float | None]:
    """p50, p90, p95, p99 and mean in milliseconds (linear interpolation); all None where there is no value."""
    if not seconds:
        return {**{f"p{p}": None for p in PERCENTILES}, "mean": None}
    values = np.percentile(seconds, PERCENTILES) * 1e3
    named = {f"p{p}": round(float(v), 3) for p, v in zip(PERCENTILES, values, strict=True)}
    return {**named, "mean": round(float(np.mean(seconds)) * 1e3, 3)}


def ttft(outcome: Outcome) -> float:
    """Seconds from when the call was due to its first text."""
    return outcome.stamps[0] - outcome.start


def gaps(outcome: Outcome) -> list[float]:
    """Seconds between neighbouring pieces of text."""
    return [b - a for a, b in zip(outcome.stamps, outcome.stamps[1:], strict=False)]


# Of an answer that was written: seconds, by the names of reports.
LATENCIES: dict[str, Callable[[Outcome], list[float]]] = {
    "ttft": lambda outcome: [ttft(outcome)],
    "itl": gaps,
    "e2e": lambda outcome: [outcome.end - outcome.start],
}


def gaps_together(outcomes: Sequence[Outcome]) -> list[float]:
    """The gaps while every answer was being written: after the last one began, and before the first one ended.

    Of requests that began together, those are the times of steps that compute no prompt.
    """
    begin = max((o.stamps[0] for o in outcomes), default=0.0)
    end = min((o.stamps[-1] for o in outcomes), default=0.0)
    pairs = (pair for o in outcomes for pair in zip(o.stamps, o.stamps[1:], strict=False))
    return [b - a for a, b in pairs if begin <= a and b <= end]


def output_tokens(outcome: Outcome) -> int:
    """Tokens by the server's usage; where it sends none, pieces of text."""
    return len(outcome.stamps) if outcome.completion_tokens is None else outcome.completion_tokens


def time_per_output_token(outcome: Outcome) -> float | None:
    """Mean seconds a token after the first; None for answers of one token."""
    tokens = output_tokens(outcome)
    return (outcome.stamps[-1] - outcome.stamps[0]) / (tokens - 1) if tokens > 1 and outcome.stamps else None


def latencies(outcomes: Sequence[Outcome]) -> dict[str, dict[str, float | None]]:
    """Percentiles over complete answers: ttft, inter-token, also while all were written, time per token, end to end."""
    spoken = [o for o in outcomes if o.stamps]
    per_token = [value for o in spoken if (value := time_per_output_token(o)) is not None]
    return {
        "ttft_ms": percentiles_ms([ttft(o) for o in spoken]),
        "itl_ms": percentiles_ms([gap for o in spoken for gap in gaps(o)]),
        "itl_together_ms": percentiles_ms(gaps_together(spoken)),
        "tpot_ms": percentiles_ms(per_token),
        "e2e_ms": percentiles_ms([o.end - o.start for o in outcomes]),
    }


def summarize(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """All figures of one run, overall and per model. Rates are over the time from the first start to the last end."""
    seconds = max(o.end for o in outcomes) - min(o.start for o in outcomes) if outcomes else 0.0
    models = sorted({o.model for o in outcomes})
    return {
        **_part(outcomes, seconds),
        "duration_s": round(seconds, 3),
        "tokens_counted_by": _counted_by(outcomes),
        "per_model": {model: _part([o for o in outcomes if o.model == model], seconds) for model in models},
        "error_examples": _examples(outcomes),
    }


def _part(outcomes: Sequence[Outcome], seconds: float) -> dict[str, Any]:
    good = [o for o in outcomes if o.error is None]
    tokens = sum(map(output_tokens, good))
    return {
        "requests": len(outcomes),
        "ok": len(good),
        "errors": dict(Counter(o.error for o in outcomes if o.error is not None)),
        "requests_per_s": round(len(good) / seconds, 3) if seconds else 0.0,
        "output_tokens_per_s": round(tokens / seconds, 3) if seconds else 0.0,
        "output_tokens": tokens,
        "prompt_tokens": sum(o.prompt_tokens or 0 for o in good),
        **latencies(good),
    }


def _counted_by(outcomes: Sequence[Outcome]) -> str:
    kinds = {"pieces of text" if o.completion_tokens is None else "usage" for o in outcomes if o.error is None}
    return " and ".join(sorted(kinds))


def _examples(outcomes: Sequence[Outcome]) -> dict[str, str]:
    """The first message of each error type."""
    out: dict[str, str] = {}
    for outcome in outcomes:
        if outcome.error is not None:
            out.setdefault(outcome.error, outcome.detail)
    return out
