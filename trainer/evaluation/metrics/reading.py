"""Metrics of models that read texts: classes, numbers, and the place at which a text that belongs to another is found.

``accuracy``: the class is the right one; where a text has any number of them, all of them and no other.

``macro_f1``: the mean over the classes of F1, of those that any row has or was said to have (as scikit-learn).
``micro_f1``: F1 of all classes added up; where every text has one class it is the accuracy.

``mse``, ``pearson``, ``spearman``: the mean squared error, the correlation, and that of the ranks (of equal numbers the
mean of theirs). The intervals of ``spearman`` keep the ranks among all rows.

``recall_at_k``: the right text is among the nearest k; ``mrr``: the mean of one over its place. Answers are places.

Several classes of one text are a JSON list of names, in answers and in references.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from trainer.evaluation.metrics.metric import Array, Case, Metric, as_statistics, divide, mean_metric, micro_f1


def classes_of(text: str) -> frozenset[str]:
    """The classes that ``text`` names: those of a JSON list, else itself."""
    if text.startswith("["):
        try:
            listed = json.loads(text)
        except json.JSONDecodeError:
            return frozenset([text])
        if isinstance(listed, list):
            return frozenset(map(str, listed))
    return frozenset([text])


def _is_right(case: Case) -> float:
    return float(classes_of(case.answer) == classes_of(case.reference))


ACCURACY = mean_metric("accuracy", "texts whose class, or all of whose classes, are right", _is_right)


def _hits(cases: Sequence[Case]) -> Array:
    """(hits, found, wanted) of each row, [rows, 3]."""
    pairs = [(classes_of(case.answer), classes_of(case.reference)) for case in cases]
    return as_statistics([(len(a & b), len(a), len(b)) for a, b in pairs], width=3)


MICRO_F1 = Metric("micro_f1", "F1 of all classes added up", _hits, micro_f1)


def _hits_by_class(cases: Sequence[Case]) -> Array:
    """(hits, found, wanted) of each class in each row, [rows, 3 classes]."""
    pairs = [(classes_of(case.answer), classes_of(case.reference)) for case in cases]
    place = {name: i for i, name in enumerate(sorted(frozenset().union(*(a | b for a, b in pairs))))}
    out = np.zeros((len(cases), max(1, len(place)), 3))
    for row, (found, wanted) in zip(out, pairs, strict=True):
        for which, names in enumerate((found & wanted, found, wanted)):
            row[[place[name] for name in names], which] = 1
    return out.reshape(len(cases), -1)


def _macro_f1(sums: Array) -> Array:
    parts = sums.reshape(*sums.shape[:-1], -1, 3)
    there = parts[..., 1] + parts[..., 2] > 0
    return divide(np.where(there, micro_f1(parts), 0.0).sum(-1), there.sum(-1).astype(np.float64))


MACRO_F1 = Metric("macro_f1", "the mean of the F1 of every class", _hits_by_class, _macro_f1, per_row=False)


def _numbers(cases: Sequence[Case]) -> NDArray[np.float64]:
    """(answer, reference) of each row, [rows, 2]; NaN where one is no number."""
    return np.array([[_number(case.answer), _number(case.reference)] for case in cases])


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan


def _squared_error(case: Case) -> float | None:
    error = (_number(case.answer) - _number(case.reference)) ** 2
    return None if math.isnan(error) else error


_SQUARED = mean_metric("mse", "", _squared_error)
MSE = Metric(
    "mse", "mean squared error of numbers", _SQUARED.statistics, _SQUARED.combine, higher_is_better=False, highest=None,
    excluded="they hold no number", probe="0",
)  # fmt: skip


def _moments(pairs: NDArray[np.float64]) -> Array:
    """What each row of ``pairs`` [rows, 2] adds to (n, x, y, xx, yy, xy), of numbers about their means."""
    x, y = (pairs - np.nanmean(pairs, 0)).T if np.isfinite(pairs).any() else pairs.T
    return np.stack([np.ones_like(x) + 0 * x * y, x, y, x * x, y * y, x * y], axis=1)


def _correlation(sums: Array) -> Array:
    n, x, y, xx, yy, xy = np.moveaxis(sums, -1, 0)
    below = np.sqrt(np.clip(n * xx - x * x, 0, None) * np.clip(n * yy - y * y, 0, None))
    return divide(n * xy - x * y, below)


def _pearson_statistics(cases: Sequence[Case]) -> Array:
    return _moments(_numbers(cases))


def _spearman_statistics(cases: Sequence[Case]) -> Array:
    pairs = _numbers(cases)
    good = np.isfinite(pairs).all(1)
    out = np.full_like(pairs, math.nan)
    out[good] = np.stack([mean_ranks(column) for column in pairs[good].T], axis=1)
    return _moments(out)


def mean_ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The ranks of ``values``, from 1; equal ones share the mean of theirs."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = counts.cumsum()
    ranks: NDArray[np.float64] = (ends - (counts - 1) / 2)[group]
    return ranks


def _correlated(name: str, summary: str, statistics: Callable[[Sequence[Case]], Array]) -> Metric:
    return Metric(name, summary, statistics, _correlation, per_row=False, excluded="they hold no number", probe="0")


PEARSON = _correlated("pearson", "correlation of numbers", _pearson_statistics)
SPEARMAN = _correlated("spearman", "correlation of the ranks of numbers", _spearman_statistics)


def _recall_at(most: int) -> Metric:
    def found(case: Case) -> float | None:
        place = _number(case.answer)
        return None if math.isnan(place) else float(place <= most)

    summary = "texts found nearest" if most == 1 else f"texts found among the nearest {most}"
    return mean_metric(f"recall_at_{most}", summary, found, excluded="they were not looked for", probe="1")


def _reciprocal(case: Case) -> float | None:
    place = _number(case.answer)
    return None if math.isnan(place) else 1 / place


RECALL_AT_1, RECALL_AT_5, RECALL_AT_10 = map(_recall_at, (1, 5, 10))
MRR = mean_metric(
    "mrr", "mean of one over the place of the right text", _reciprocal, excluded="they were not found", probe="1"
)

_OF_TASKS = {
    "classification": ("accuracy", "macro_f1", "micro_f1"),
    "token-classification": ("span_f1", "span_precision", "span_recall", "token_accuracy"),
    "tagging": ("token_accuracy",),
    "regression": ("mse", "pearson", "spearman"),
    "embedding": ("recall_at_1", "recall_at_5", "recall_at_10", "mrr"),
    "similarity": ("spearman", "pearson", "mse"),
}


def reading_metrics(task: str) -> tuple[str, ...]:
    """The names of the metrics of ``task``; ``similarity`` is that of vectors of texts with a score,
    ``tagging`` of tags of single words."""
    return _OF_TASKS[task]
