"""The metrics by name. A new one is a formula with its source in the file of its kind, and a line here."""

from __future__ import annotations

from collections.abc import Iterable

from trainer.errors import EvaluationError
from trainer.evaluation.metrics.matches import EXACT_MATCH, GSM8K_ACCURACY, INCLUDES, LABEL_ACCURACY
from trainer.evaluation.metrics.metric import Case, Metric
from trainer.evaluation.metrics.overlap import BLEU4, CHRF, ROUGE1, ROUGE2, ROUGE_L
from trainer.evaluation.metrics.perplexity import PERPLEXITY
from trainer.evaluation.metrics.reading import (
    ACCURACY,
    MACRO_F1,
    MICRO_F1,
    MRR,
    MSE,
    PEARSON,
    RECALL_AT_1,
    RECALL_AT_5,
    RECALL_AT_10,
    SPEARMAN,
)
from trainer.evaluation.metrics.spans import SPAN_F1, SPAN_PRECISION, SPAN_RECALL, TOKEN_ACCURACY
from trainer.evaluation.metrics.sql import SQL_EXACT, SQL_EXECUTION
from trainer.evaluation.metrics.structured import ENTITY_F1, JSON_VALID, SLOT_F1, TRIPLE_F1

__all__ = ["METRICS", "Case", "Metric", "find_metrics"]

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        EXACT_MATCH, INCLUDES, LABEL_ACCURACY, JSON_VALID, SLOT_F1, ENTITY_F1, TRIPLE_F1, SQL_EXACT, SQL_EXECUTION,
        GSM8K_ACCURACY, BLEU4, CHRF, ROUGE1, ROUGE2, ROUGE_L, PERPLEXITY, ACCURACY, MACRO_F1, MICRO_F1, MSE, PEARSON,
        SPEARMAN, RECALL_AT_1, RECALL_AT_5, RECALL_AT_10, MRR, SPAN_F1, SPAN_PRECISION, SPAN_RECALL, TOKEN_ACCURACY,
    )
}  # fmt: skip


def find_metrics(names: Iterable[str]) -> list[Metric]:
    """The metrics of these names, each once. Raises EvaluationError for an unknown one."""
    wanted = list(dict.fromkeys(names))
    unknown = [name for name in wanted if name not in METRICS]
    if unknown:
        raise EvaluationError(f"unknown metric {unknown[0]!r}; choose from {', '.join(METRICS)}")
    if not wanted:
        raise EvaluationError(f"name at least one metric of {', '.join(METRICS)}")
    return [METRICS[name] for name in wanted]
