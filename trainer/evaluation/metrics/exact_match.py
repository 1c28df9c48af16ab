"""The share of answers that are the reference, but for white space around both.

The same as the trainer's own ``exact_match`` at the end of a run (trainer.evaluation.greedy).
"""

from __future__ import annotations

from trainer.evaluation.metrics.base import Case, mean_metric


def is_exact(case: Case) -> float:
    """1 for an exact answer, else 0."""
    return float(case.answer.strip() == case.reference.strip())


EXACT_MATCH = mean_metric("exact_match", "answers equal to the reference, but for white space around", is_exact)
