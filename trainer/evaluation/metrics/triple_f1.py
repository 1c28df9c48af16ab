"""The mean over rows of the F1 between two sets of triples, one triple a line as ``subject_relation_object``.

Only lines with exactly three fields between underscores count; a row without a triple in common has F1 0. It is the
score of the ChatGLM-Finetuning comparison (github.com/liucongg/ChatGLM-Finetuning, predict scripts).
"""

from __future__ import annotations

from collections.abc import Sequence

from trainer.evaluation.metrics.base import Array, Case, Metric, as_statistics, ratio

_FIELDS = 3


def triples_of(text: str) -> set[str]:
    """The lines of ``text`` that are triples."""
    return {line for line in text.split("\n") if len(line.split("_")) == _FIELDS}


def set_f1(case: Case) -> float:
    """F1 between the triples of the answer and of the reference."""
    found, wanted = triples_of(case.answer), triples_of(case.reference)
    return 2 * len(found & wanted) / (len(found) + len(wanted)) if found & wanted else 0.0


def _statistics(cases: Sequence[Case]) -> Array:
    if not any(triples_of(case.reference) for case in cases):
        return as_statistics([None] * len(cases), width=2)  # rows of another kind: nothing right could score above 0
    return as_statistics([(set_f1(case), 1.0) for case in cases], width=2)


TRIPLE_F1 = Metric(
    "triple_f1",
    "mean over rows of the set F1 of subject_relation_object lines",
    _statistics,
    ratio,
    excluded="no reference has triples",
)
