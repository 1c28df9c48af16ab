"""The mean over rows of the F1 between two sets of triples, one triple a line as ``subject_relation_object``.

Only lines with exactly three fields between underscores count; a row without a triple in common has F1 0. It is the
score of the ChatGLM-Finetuning comparison (github.com/liucongg/ChatGLM-Finetuning, predict scripts).
"""

from __future__ import annotations

from trainer.evaluation.metrics.base import Case, mean_metric

_FIELDS = 3


def triples_of(text: str) -> set[str]:
    """The lines of ``text`` that are triples."""
    return {line for line in text.split("\n") if len(line.split("_")) == _FIELDS}


def set_f1(case: Case) -> float:
    """F1 between the triples of the answer and of the reference."""
    found, wanted = triples_of(case.answer), triples_of(case.reference)
    return 2 * len(found & wanted) / (len(found) + len(wanted)) if found & wanted else 0.0


TRIPLE_F1 = mean_metric("triple_f1", "mean over rows of the set F1 of subject_relation_object lines", set_f1)
