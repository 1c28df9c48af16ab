"""What to beat: an answer that is always the same. Knows no model."""

from __future__ import annotations

import json
from statistics import fmean

from trainer.pooling.pooled_data import PooledData


def baseline_answers(data: PooledData) -> tuple[str, str] | None:
    """The name of the baseline and its one answer: the commonest class, or the mean; None for vectors."""
    if data.labels is not None:
        name = data.counts.most_common(1)[0][0]
        return "majority", json.dumps([name], ensure_ascii=False) if data.labels.several else name
    if data.learned != "regression":
        return None
    return "mean", repr(fmean(one.number for one in data.train if one.number is not None))
