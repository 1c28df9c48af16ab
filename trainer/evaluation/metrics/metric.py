"""What a metric is: sums over rows, and a formula of these sums.

Written this way every metric, corpus metrics such as BLEU or micro F1 too, can be resampled: a bootstrap draws rows,
adds up what they contribute, and applies the formula again. Knows neither HTTP nor bootstraps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Case:
    """One row to score: the answer, the reference, the row's columns, and the reference's log-probabilities.

    ``logprobs`` are those of the reference's tokens given the prompt, for metrics that need them, else None.
    """

    answer: str
    reference: str
    row: Mapping[str, Any] = field(default_factory=dict)
    logprobs: Sequence[float] | None = None

    @property
    def references(self) -> list[str]:
        """Every right answer: the row's column ``references`` where it has one, else the reference."""
        listed = self.row.get("references")
        return [str(text) for text in listed] if isinstance(listed, list) and listed else [self.reference]


@dataclass(frozen=True)
class Metric:
    """A metric.

    ``statistics`` gives what each row adds to the sums: float64 [rows, k], a row of NaN where it cannot be scored
    (``excluded`` says why, for the report). ``combine`` makes the metric of sums: [..., k] -> [...]. ``highest`` is its
    greatest value, None where there is none. ``per_row`` says whether the metric of one row alone has a meaning.
    ``from_logprobs``: it scores the references, not answers. ``probe`` is an answer that it can score, right or not.
    """

    name: str
    summary: str
    statistics: Callable[[Sequence[Case]], Array]
    combine: Callable[[Array], Array]
    higher_is_better: bool = True
    highest: float | None = 1.0
    per_row: bool = True
    from_logprobs: bool = False
    excluded: str = "they cannot be scored"
    probe: str = ""


def mean_metric(
    name: str, summary: str, score: Callable[[Case], float | None], *, excluded: str = "", probe: str = ""
) -> Metric:
    """The mean over rows of ``score``; rows of which it is None are left out."""

    def statistics(cases: Sequence[Case]) -> Array:
        found = [score(case) for case in cases]
        return as_statistics([None if value is None else (value, 1.0) for value in found], width=2)

    return Metric(name, summary, statistics, ratio, excluded=excluded, probe=probe)


def as_statistics(rows: Sequence[Sequence[float] | None], width: int) -> Array:
    """``rows`` as float64 [rows, width]; None becomes a row of NaN."""
    out = np.full((len(rows), width), np.nan)
    for i, row in enumerate(rows):
        if row is not None:
            out[i] = row
    return out


def overlap_statistics(cases: Sequence[Case], parts: Callable[[str], Counter[Any]]) -> Array:
    """(hits, found, wanted) of each row, float64 [rows, 3], between the ``parts`` of its answer and its reference.

    All NaN where no reference has any: then the rows are of another kind, and nothing right could score above 0.
    """
    wanted = [parts(case.reference) for case in cases]
    if not any(wanted):
        return as_statistics([None] * len(cases), width=3)
    found = [parts(case.answer) for case in cases]
    rows = zip(found, wanted, strict=True)
    return as_statistics([((a & b).total(), a.total(), b.total()) for a, b in rows], width=3)


def ratio(sums: Array) -> Array:
    """The first sum over the second; 0 where the second is 0."""
    return divide(sums[..., 0], sums[..., 1])


def micro_f1(sums: Array) -> Array:
    """F1 of (hits, found, wanted) added up over all rows: 2 hits / (found + wanted); 0 where nothing was either."""
    return divide(2 * sums[..., 0], sums[..., 1] + sums[..., 2])


def divide(above: Array, below: Array) -> Array:
    """``above / below``; 0 where ``below`` is 0."""
    out: Array = np.zeros_like(above)
    np.divide(above, below, out=out, where=below != 0)
    return out
