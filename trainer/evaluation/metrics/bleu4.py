"""Corpus BLEU with n-grams up to 4 (Papineni et al. 2002), by sacrebleu (Post 2018), from 0 to 100.

Tokens are sacrebleu's ``13a``, for Chinese ``zh``: every character. Orders without a match are smoothed (``exp``).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trainer.evaluation.metrics.base import Array, Case, Metric, as_statistics
from trainer.evaluation.metrics.language import is_chinese

_ORDERS = 4


def _statistics(cases: Sequence[Case]) -> Array:
    """(matches of 4 orders, n-grams of 4 orders, length of the answer, of the reference) a row."""
    from sacrebleu.metrics.bleu import BLEU

    bleu = BLEU(tokenize="zh" if is_chinese(cases) else "13a", effective_order=True)
    rows = []
    for case in cases:
        found = bleu.sentence_score(case.answer, case.references)
        rows.append((*found.counts, *found.totals, found.sys_len, found.ref_len))
    return as_statistics(rows, width=2 * _ORDERS + 2)


def _combine(sums: Array) -> Array:
    out: Array = np.apply_along_axis(_score, -1, sums)
    return out


def _score(sums: Array) -> float:
    from sacrebleu.metrics.bleu import BLEU

    counts = [int(number) for number in sums]
    correct, total, (sys_len, ref_len) = counts[:_ORDERS], counts[_ORDERS : 2 * _ORDERS], counts[2 * _ORDERS :]
    found = BLEU.compute_bleu(correct, total, sys_len, ref_len, smooth_method="exp")
    return float(found.score)


BLEU4 = Metric("bleu4", "corpus BLEU-4 by sacrebleu, 0 to 100", _statistics, _combine, highest=100.0, per_row=False)
