"""Two evaluations of the same rows against each other, by paired bootstrap."""

from __future__ import annotations

from trainer.errors import EvaluationError
from trainer.evaluation.bootstrap import paired_interval, value_of
from trainer.evaluation.metrics import METRICS
from trainer.evaluation.scoring import scored
from trainer.evaluation.types import Comparison, Difference, Evaluation


def compare(candidate: Evaluation, live: Evaluation) -> Comparison:
    """Every metric that both have, on the rows that both could be scored on.

    Raises EvaluationError when they are not of the same rows.
    """
    if candidate.rows != live.rows:
        raise EvaluationError(f"{candidate.model} and {live.model} were not asked the same rows; evaluate both again")
    shared = [name for name in candidate.scores if name in live.scores]
    return Comparison(candidate.model, live.model, {name: _difference(name, candidate, live) for name in shared})


def _difference(name: str, candidate: Evaluation, live: Evaluation) -> Difference:
    metric = METRICS[name]
    ours, theirs = candidate.statistics[name], live.statistics[name]
    both = scored(ours) & scored(theirs)
    ours, theirs = ours[both], theirs[both]
    if not len(ours):
        raise EvaluationError(f"{name}: there is no row on which both could be scored")
    values = value_of(ours, metric.combine), value_of(theirs, metric.combine)
    low, high = paired_interval(ours, theirs, metric.combine)
    return Difference(name, *values, values[0] - values[1], low, high, len(ours), metric.higher_is_better)
