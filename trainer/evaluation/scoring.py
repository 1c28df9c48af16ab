"""Answers to scores: metrics over the rows, with their intervals. Knows no server."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from trainer.data.questions import Question
from trainer.errors import EvaluationError
from trainer.evaluation.bootstrap import interval, value_of
from trainer.evaluation.metrics import Case, Metric, find_metrics
from trainer.evaluation.metrics.base import Array
from trainer.evaluation.types import Score


def score_rows(metric: Metric, cases: Sequence[Case]) -> tuple[Score, Array]:
    """The score of ``metric`` over ``cases``, and its statistics by row [rows, k] (NaN for rows left out).

    Raises EvaluationError when no row can be scored, or the library that the metric needs is not installed.
    """
    statistics = _statistics(metric, cases)
    kept = statistics[scored(statistics)]
    left_out = len(cases) - len(kept)
    low, high = interval(kept, metric.combine)
    note = f"{left_out} row{'s' if left_out > 1 else ''} left out: {metric.excluded}" if left_out else ""
    value = value_of(kept, metric.combine)
    return Score(metric.name, value, low, high, len(kept), metric.higher_is_better, note), statistics


def check_scorable(metric: Metric, questions: Sequence[Question]) -> None:
    """Raise EvaluationError, before anything is asked, when no answer to ``questions`` could be scored."""
    if metric.from_logprobs:
        return
    cases = [Case("", question.reference, question.row) for question in questions]
    try:
        _statistics(metric, cases[:1])  # mostly enough, and quick
    except EvaluationError:
        _statistics(metric, cases)


def scorable(names: Sequence[str], questions: Sequence[Question], say: Callable[[str], None]) -> list[str]:
    """The metrics of ``names`` that some answer can be scored by; ``say`` hears which are left out, and why.

    For metrics that nobody asked for by name. Raises EvaluationError when none is left.
    """
    kept = []
    for metric in find_metrics(names):
        try:
            check_scorable(metric, questions)
        except EvaluationError as error:
            say(f"{metric.name} is left out: {error}")
        else:
            kept.append(metric.name)
    if not kept:
        raise EvaluationError(f"none of {', '.join(names)} can be computed on these rows; name others with --metrics")
    return kept


def _statistics(metric: Metric, cases: Sequence[Case]) -> Array:
    try:
        statistics = metric.statistics(cases)
    except ImportError as error:
        raise EvaluationError(
            f"{metric.name} needs the package {error.name}; install hotswap with the extra [metrics]"
        ) from error
    if not scored(statistics).any():
        raise EvaluationError(f"{metric.name} cannot be computed on any row: {metric.excluded}")
    return statistics


def row_values(metric: Metric, statistics: Array) -> list[float | None]:
    """The metric of each row alone; None where it cannot be scored or has no meaning for one row."""
    if not metric.per_row:
        return [None] * len(statistics)
    good = scored(statistics)
    values = metric.combine(np.where(good[:, None], statistics, 0.0))
    return [float(value) if ok else None for value, ok in zip(values, good, strict=True)]


def scored(statistics: Array) -> NDArray[np.bool_]:
    """Which rows of ``statistics`` [rows, k] could be scored."""
    return np.asarray(~np.isnan(statistics[:, 0]))
