"""Metrics of the tags of words, of which answers and references are JSON lists, one tag a word.

``span_f1``: micro F1 of the spans that tags write (names of several words): right are those of the same kind whose
first and last words are the same. F1 = 2 hits / (found + wanted), added up over the rows, as conlleval (Tjong Kim Sang
& De Meulder 2003) and seqeval have it; ``span_precision`` is hits / found, ``span_recall`` hits / wanted.

``token_accuracy``: words whose tag is the right one, of all words.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence

from trainer.data.tags import Span, spans_of
from trainer.evaluation.metrics.metric import (
    Array,
    Case,
    Metric,
    as_statistics,
    divide,
    micro_f1,
    overlap_statistics,
    ratio,
)


def tags_of(text: str) -> list[str]:
    """The tags in ``text``; none where it is no such list."""
    try:
        tags = json.loads(text)
    except ValueError:
        return []
    return tags if isinstance(tags, list) and all(isinstance(tag, str) for tag in tags) else []


def _spans(text: str) -> Counter[Span]:
    return Counter(spans_of(tags_of(text)))


def _span_statistics(cases: Sequence[Case]) -> Array:
    return overlap_statistics(cases, _spans)


def _of_spans(name: str, summary: str, combine: Callable[[Array], Array]) -> Metric:
    return Metric(name, summary, _span_statistics, combine, per_row=False, excluded="no reference has spans")


SPAN_F1 = _of_spans("span_f1", "micro F1 of the spans that tags of words write", micro_f1)
SPAN_PRECISION = _of_spans(
    "span_precision", "spans found that are right", lambda sums: divide(sums[..., 0], sums[..., 1])
)
SPAN_RECALL = _of_spans("span_recall", "spans wanted that were found", lambda sums: divide(sums[..., 0], sums[..., 2]))


def _right_words(cases: Sequence[Case]) -> Array:
    """(right, words) of each row, [rows, 2]; NaN where the reference has no words."""
    rows = []
    for case in cases:
        said, wanted = tags_of(case.answer), tags_of(case.reference)
        right = sum(ours == theirs for ours, theirs in zip(said, wanted, strict=False))
        rows.append((right, len(wanted)) if wanted else None)
    return as_statistics(rows, width=2)


TOKEN_ACCURACY = Metric(
    "token_accuracy", "words whose tag is right", _right_words, ratio, excluded="they have no words with tags"
)
