"""What to beat: an answer that is always the same. Knows no model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from statistics import fmean

from trainer.pooling.pooled_data import PooledData


def baseline_answers(data: PooledData, wanted: Sequence[str]) -> tuple[str, list[str]] | None:
    """The name of the baseline and its answers to rows that want ``wanted``: the commonest class or tag, or the mean.

    None for vectors.
    """
    if data.labels is not None:
        name = data.counts.most_common(1)[0][0]
        if data.labels.of_words:
            return "majority", same_tags(name, wanted)
        return "majority", [json.dumps([name], ensure_ascii=False) if data.labels.several else name] * len(wanted)
    if data.learned != "regression":
        return None
    return "mean", [repr(fmean(one.number for one in data.train if one.number is not None))] * len(wanted)


def same_tags(tag: str, wanted: Sequence[str]) -> list[str]:
    """``tag`` for each word of rows whose tags are ``wanted``."""
    return [json.dumps([tag] * len(json.loads(tags)), ensure_ascii=False) for tags in wanted]
