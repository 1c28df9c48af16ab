"""Perplexity of the references given their prompts: exp of the mean negative log-likelihood of a token.

exp(-sum(log p) / tokens) over all rows together (Jelinek et al. 1977). The token that ends an answer is not counted,
which the trainer's validation loss does.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trainer.evaluation.metrics.metric import Array, Case, Metric, as_statistics, ratio


def _statistics(cases: Sequence[Case]) -> Array:
    rows = [(-sum(case.logprobs), float(len(case.logprobs))) if case.logprobs else None for case in cases]
    return as_statistics(rows, width=2)


def _combine(sums: Array) -> Array:
    out: Array = np.exp(ratio(sums))
    return out


PERPLEXITY = Metric(
    "perplexity",
    "perplexity of the references given their prompts",
    _statistics,
    _combine,
    higher_is_better=False,
    highest=None,
    from_logprobs=True,
    excluded="the reference holds no token to predict",
)
