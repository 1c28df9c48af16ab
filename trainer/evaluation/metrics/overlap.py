"""Overlap of answers with references, from 0 to 100: BLEU-4, chrF2 and ROUGE.

``bleu4``: corpus BLEU with n-grams up to 4 (Papineni et al. 2002), by sacrebleu (Post 2018). Tokens are sacrebleu's
``13a``, for Chinese ``zh``: every character. Orders without a match are smoothed (``exp``).

``chrf``: chrF2, the F score of character n-grams up to 6, recall counting twice (Popović 2015). As sacrebleu computes
it over a corpus: matches of each order are added up over the rows, precision and recall are averaged over the orders
that both texts have, white space is left out. sacrebleu gives no counts by row, which a bootstrap needs; they are
counted here, and tests compare the result with sacrebleu's.

``rouge1``, ``rouge2``, ``rougeL`` (Lin 2004): the mean over rows of the F measure, by rouge-score. English is stemmed
(Porter), as summarisation papers do; in Chinese text every character is a token. Of several references the best one
counts.

A corpus is Chinese, where words are not set apart, when a fifth of its letters are.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from trainer.evaluation.metrics.metric import Array, Case, Metric, as_statistics, divide, ratio

# CJK ideographs (unified, extension A, compatibility, supplementary planes); what \w finds are all letters and digits
_CJK = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_LETTER = re.compile(r"\w")
_SHARE = 0.2  # a character says as much as three or four Latin letters do


def is_chinese(cases: Sequence[Case]) -> bool:
    """Whether a fifth or more of the letters of the references are Chinese characters."""
    letters = sum(len(_LETTER.findall(case.reference)) for case in cases)
    characters = sum(len(_CJK.findall(case.reference)) for case in cases)
    return characters >= _SHARE * letters > 0


def characters_and_words(text: str) -> list[str]:
    """Tokens of mixed text: every Chinese character, every run of other letters and digits in lower case."""
    return re.findall(rf"{_CJK.pattern}|(?:(?!{_CJK.pattern})\w)+", text.lower())


_BLEU_ORDERS = 4


def _bleu_statistics(cases: Sequence[Case]) -> Array:
    """(matches of 4 orders, n-grams of 4 orders, length of the answer, of the reference) a row."""
    from sacrebleu.metrics.bleu import BLEU

    bleu = BLEU(tokenize="zh" if is_chinese(cases) else "13a", effective_order=True)
    rows = []
    for case in cases:
        found = bleu.sentence_score(case.answer, case.references)
        rows.append((*found.counts, *found.totals, found.sys_len, found.ref_len))
    return as_statistics(rows, width=2 * _BLEU_ORDERS + 2)


def _combine_bleu(sums: Array) -> Array:
    out: Array = np.apply_along_axis(_bleu, -1, sums)
    return out


def _bleu(sums: Array) -> float:
    from sacrebleu.metrics.bleu import BLEU

    counts = [int(number) for number in sums]
    correct, total, (sys_len, ref_len) = (
        counts[:_BLEU_ORDERS],
        counts[_BLEU_ORDERS : 2 * _BLEU_ORDERS],
        counts[2 * _BLEU_ORDERS :],
    )
    found = BLEU.compute_bleu(correct, total, sys_len, ref_len, smooth_method="exp")
    return float(found.score)


BLEU4 = Metric(
    "bleu4", "corpus BLEU-4 by sacrebleu, 0 to 100", _bleu_statistics, _combine_bleu, highest=100.0, per_row=False
)
_CHRF_ORDERS = 6
_BETA_SQUARED = 4.0


def _best_counts(case: Case) -> list[float]:
    """The counts against that of the references which scores best."""
    rows = [_chrf_counts(case.answer, reference) for reference in case.references]
    return max(rows, key=lambda counts: float(_combine_chrf(np.array(counts, dtype=np.float64))))


def _chrf_counts(answer: str, reference: str) -> list[float]:
    """(n-grams of the answer, of the reference, in both) for each order."""
    answer, reference = "".join(answer.split()), "".join(reference.split())
    out: list[float] = []
    for order in range(1, _CHRF_ORDERS + 1):
        found, wanted = _ngrams(answer, order), _ngrams(reference, order)
        out += [found.total() if wanted else 0, wanted.total(), (found & wanted).total()]
    return out


def _ngrams(text: str, order: int) -> Counter[str]:
    return Counter(text[i : i + order] for i in range(len(text) - order + 1))


def _chrf_statistics(cases: Sequence[Case]) -> Array:
    return as_statistics([_best_counts(case) for case in cases], width=3 * _CHRF_ORDERS)


def _combine_chrf(sums: Array) -> Array:
    found, wanted, hits = sums[..., 0::3], sums[..., 1::3], sums[..., 2::3]
    both = (found > 0) & (wanted > 0)
    orders = both.sum(-1).astype(np.float64)
    precision = divide(np.where(both, divide(hits, found), 0.0).sum(-1), orders)
    recall = divide(np.where(both, divide(hits, wanted), 0.0).sum(-1), orders)
    return 100 * divide((1 + _BETA_SQUARED) * precision * recall, _BETA_SQUARED * precision + recall)


CHRF = Metric("chrf", "chrF2 of character n-grams, 0 to 100", _chrf_statistics, _combine_chrf, highest=100.0)


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
