"""The metrics by name. A new one is a file with its formula and source, and a line here."""

from __future__ import annotations

from collections.abc import Iterable

from trainer.errors import EvaluationError
from trainer.evaluation.metrics.base import Case, Metric
from trainer.evaluation.metrics.bleu4 import BLEU4
from trainer.evaluation.metrics.chrf import CHRF
from trainer.evaluation.metrics.entity_f1 import ENTITY_F1
from trainer.evaluation.metrics.exact_match import EXACT_MATCH
from trainer.evaluation.metrics.gsm8k_accuracy import GSM8K_ACCURACY
from trainer.evaluation.metrics.includes import INCLUDES
from trainer.evaluation.metrics.json_valid import JSON_VALID
from trainer.evaluation.metrics.label_accuracy import LABEL_ACCURACY
from trainer.evaluation.metrics.perplexity import PERPLEXITY
from trainer.evaluation.metrics.rouge import ROUGE1, ROUGE2, ROUGE_L
from trainer.evaluation.metrics.slot_f1 import SLOT_F1
from trainer.evaluation.metrics.sql_exact import SQL_EXACT
from trainer.evaluation.metrics.sql_execution import SQL_EXECUTION
from trainer.evaluation.metrics.triple_f1 import TRIPLE_F1

__all__ = ["METRICS", "Case", "Metric", "find_metrics"]

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        EXACT_MATCH, INCLUDES, LABEL_ACCURACY, JSON_VALID, SLOT_F1, ENTITY_F1, TRIPLE_F1, SQL_EXACT, SQL_EXECUTION,
        GSM8K_ACCURACY, BLEU4, CHRF, ROUGE1, ROUGE2, ROUGE_L, PERPLEXITY,
    )
}  # fmt: skip


def find_metrics(names: Iterable[str]) -> list[Metric]:
    """The metrics of these names, each once. Raises EvaluationError for an unknown one."""
    wanted = list(dict.fromkeys(names))
    unknown = [name for name in wanted if name not in METRICS]
    if unknown:
        raise EvaluationError(f"there is no metric {unknown[0]!r}; choose from {', '.join(METRICS)}")
    if not wanted:
        raise EvaluationError(f"name at least one metric of {', '.join(METRICS)}")
    return [METRICS[name] for name in wanted]
