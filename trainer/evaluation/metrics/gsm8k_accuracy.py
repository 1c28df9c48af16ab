"""The share of answers whose final number is the reference's (Cobbe et al. 2021, Training Verifiers to Solve Math
Word Problems).

The final number stands after ``####`` as in the data, or is the last number of the text (as lm-evaluation-harness's
flexible-extract takes it). Numbers are compared by value: 1,000 is 1000.0.
"""

from __future__ import annotations

import re
from decimal import Decimal

from trainer.evaluation.metrics.base import Case, mean_metric

_NUMBER = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|-?\.\d+")


def final_number(text: str) -> Decimal | None:
    """The number that ``text`` arrives at, None without one."""
    marked = text.rpartition("####")[2] if "####" in text else ""
    found = _NUMBER.search(marked) or next(reversed(list(_NUMBER.finditer(text))), None)
    return Decimal(found.group().replace(",", "")) if found else None


def is_same_number(case: Case) -> float | None:
    """1 where both arrive at the same number, else 0; None when the reference has none."""
    wanted = final_number(case.reference)
    return None if wanted is None else float(final_number(case.answer) == wanted)


GSM8K_ACCURACY = mean_metric(
    "gsm8k_accuracy", "final numbers that are right", is_same_number, excluded="the reference holds no number"
)
