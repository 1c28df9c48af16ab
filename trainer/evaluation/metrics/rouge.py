"""ROUGE-1, ROUGE-2 and ROUGE-L (Lin 2004): the mean over rows of the F measure, from 0 to 100, by rouge-score.

English is stemmed (Porter), as summarisation papers do; in Chinese text every character is a token. Of several
references the best one counts.
"""

from __future__ import annotations

from collections.abc import Sequence

from trainer.evaluation.metrics.base import Array, Case, Metric, as_statistics, ratio
from trainer.evaluation.metrics.language import characters_and_words, is_chinese


class _Characters:
    """What rouge-score asks of a tokenizer; its own drops everything but a-z and digits."""

    def tokenize(self, text: str) -> list[str]:
        return characters_and_words(text)


def _rouge(kind: str, summary: str) -> Metric:
    def statistics(cases: Sequence[Case]) -> Array:
        from rouge_score.rouge_scorer import RougeScorer

        scorer = RougeScorer([kind], use_stemmer=True, tokenizer=_Characters() if is_chinese(cases) else None)
        rows = [(100 * scorer.score_multi(case.references, case.answer)[kind].fmeasure, 1.0) for case in cases]
        return as_statistics(rows, width=2)

    return Metric(kind, summary, statistics, ratio, highest=100.0)


ROUGE1 = _rouge("rouge1", "mean F of words in common, 0 to 100")
ROUGE2 = _rouge("rouge2", "mean F of pairs of words in common, 0 to 100")
ROUGE_L = _rouge("rougeL", "mean F of the longest common subsequence, 0 to 100")
