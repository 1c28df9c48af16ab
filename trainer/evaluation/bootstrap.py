"""Confidence intervals by resampling rows (Efron 1979; paired, as in Koehn 2004 for comparing two systems).

A sample draws as many rows as there are, with replacement; the metric's formula is applied to what they add up to. The
interval is that between the 2.5th and the 97.5th percentile of the samples. Everything is seeded: the same answers give
the same interval.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Combine = Callable[[Array], Array]

SAMPLES = 2000
SEED = 0
_PERCENTILES = (2.5, 97.5)
_AT_ONCE = 4_000_000  # row weights held at a time: 32 MB


def value_of(statistics: Array, combine: Combine) -> float:
    """The metric over all rows of ``statistics`` [rows, k]."""
    return float(combine(statistics.sum(0)))


def interval(statistics: Array, combine: Combine) -> tuple[float, float]:
    """The 95 % interval of the metric over rows like those of ``statistics`` [rows, k], which hold no NaN."""
    low, high = np.percentile(_samples([statistics], combine)[0], _PERCENTILES)
    return float(low), float(high)


def paired_interval(candidate: Array, live: Array, combine: Combine) -> tuple[float, float]:
    """The 95 % interval of candidate minus live; both are [rows, k] of the same rows, drawn together."""
    ours, theirs = _samples([candidate, live], combine)
    low, high = np.percentile(ours - theirs, _PERCENTILES)
    return float(low), float(high)


def _samples(groups: list[Array], combine: Combine) -> list[Array]:
    """The metric of SAMPLES samples, for each group over the same draws of rows."""
    rows = len(groups[0])
    generator = np.random.default_rng(SEED)
    per_round = max(1, _AT_ONCE // rows)
    out: list[list[Array]] = [[] for _ in groups]
    for start in range(0, SAMPLES, per_round):
        count = min(per_round, SAMPLES - start)
        weights = generator.multinomial(rows, np.full(rows, 1 / rows), size=count).astype(np.float64)
        for group, values in zip(groups, out, strict=True):
            values.append(combine(weights @ group))
    return [np.concatenate(values) for values in out]
