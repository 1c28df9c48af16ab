"""The share of answers that name the right label, read as a person would.

Upper and lower case, ``_``, ``-`` and spaces, and a full stop or quotes around the label make no difference.
"""

from __future__ import annotations

import re

from trainer.evaluation.metrics.base import Case, mean_metric

_AROUND = " \t\r\n.。\"'`*"


def label_of(text: str) -> str:
    """``text`` in the form in which labels are compared."""
    return re.sub(r"[\s_-]+", " ", text.strip(_AROUND)).casefold()


def is_label(case: Case) -> float:
    """1 where the labels are the same, else 0."""
    return float(label_of(case.answer) == label_of(case.reference))


LABEL_ACCURACY = mean_metric("label_accuracy", "answers that name the right label, case and quotes aside", is_label)
