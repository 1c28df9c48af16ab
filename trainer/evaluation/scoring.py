"""Answers to scores: metrics over the rows, with their intervals, and two evaluations against each other.

Comparisons are of the same rows, by paired bootstrap. Knows no server.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from trainer.data.messages import Question
from trainer.errors import EvaluationError
from trainer.evaluation.bootstrap import interval, paired_interval, value_of
from trainer.evaluation.metrics import METRICS, Case, Metric, find_metrics
from trainer.evaluation.metrics.metric import Array
from trainer.evaluation.results import Comparison, Difference, Evaluation, Score


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


def score_texts(metrics: Sequence[Metric], answers: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """``metrics`` of ``answers``, without intervals, by name. Raises EvaluationError as ``score_rows`` does."""
    cases = [Case(answer, reference) for answer, reference in zip(answers, references, strict=True)]
    found = {metric.name: (metric, _statistics(metric, cases)) for metric in metrics}
    return {name: value_of(values[scored(values)], metric.combine) for name, (metric, values) in found.items()}


def check_scorable(metric: Metric, questions: Sequence[Question]) -> None:
    """Raise EvaluationError, before anything is asked, when no answer to ``questions`` could be scored."""
    if metric.from_logprobs:
        return
    cases = [Case(metric.probe, question.reference, question.row) for question in questions]
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


def compare(candidate: Evaluation, live: Evaluation) -> Comparison:
    """Every metric that both have, on the rows that both could be scored on.

    Raises EvaluationError when they are not of the same rows.
    """
    if candidate.rows != live.rows:
        raise EvaluationError(f"{candidate.model} and {live.model} were not asked the same rows; evaluate both again")
    shared = [name for name in candidate.scores if name in live.scores]
    return Comparison(candidate.model, live.model, {name: _difference(name, candidate, live) for name in shared})


def _difference(name: str, candidate: Evaluation, live: Evaluation) -> Difference:
    metric = METRICS[name]
    ours, theirs = candidate.statistics[name], live.statistics[name]
    both = scored(ours) & scored(theirs)
    ours, theirs = ours[both], theirs[both]
    if not len(ours):
        raise EvaluationError(f"{name}: there is no row on which both could be scored")
    values = value_of(ours, metric.combine), value_of(theirs, metric.combine)
    low, high = paired_interval(ours, theirs, metric.combine)
    return Difference(name, *values, values[0] - values[1], low, high, len(ours), metric.higher_is_better)
