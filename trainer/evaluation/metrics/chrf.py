"""chrF2: F score of character n-grams up to 6, recall counting twice (Popović 2015), from 0 to 100.

As sacrebleu computes it over a corpus: matches of each order are added up over the rows, precision and recall are
averaged over the orders that both texts have, white space is left out. sacrebleu gives no counts by row, which a
bootstrap needs; they are counted here, and tests compare the result with sacrebleu's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from trainer.evaluation.metrics.base import Array, Case, Metric, as_statistics, divide

_ORDERS = 6
_BETA_SQUARED = 4.0


def _row(case: Case) -> list[float]:
    """The counts against that of the references which scores best."""
    rows = [_counts(case.answer, reference) for reference in case.references]
    return max(rows, key=lambda counts: float(_combine(np.array(counts, dtype=np.float64))))


def _counts(answer: str, reference: str) -> list[float]:
    """(n-grams of the answer, of the reference, in both) for each order."""
    answer, reference = "".join(answer.split()), "".join(reference.split())
    out: list[float] = []
    for order in range(1, _ORDERS + 1):
        found, wanted = _ngrams(answer, order), _ngrams(reference, order)
        out += [found.total() if wanted else 0, wanted.total(), (found & wanted).total()]
    return out


def _ngrams(text: str, order: int) -> Counter[str]:
    return Counter(text[i : i + order] for i in range(len(text) - order + 1))


def _statistics(cases: Sequence[Case]) -> Array:
    return as_statistics([_row(case) for case in cases], width=3 * _ORDERS)


def _combine(sums: Array) -> Array:
    found, wanted, hits = sums[..., 0::3], sums[..., 1::3], sums[..., 2::3]
    both = (found > 0) & (wanted > 0)
    orders = both.sum(-1).astype(np.float64)
    precision = divide(np.where(both, divide(hits, found), 0.0).sum(-1), orders)
    recall = divide(np.where(both, divide(hits, wanted), 0.0).sum(-1), orders)
    return 100 * divide((1 + _BETA_SQUARED) * precision * recall, _BETA_SQUARED * precision + recall)


CHRF = Metric("chrf", "chrF2 of character n-grams, 0 to 100", _statistics, _combine, highest=100.0)
