"""The share of answers that include one of the row's accepted texts, as whole words, without regard to case.

The accepted texts are the row's column ``accept``, else the reference; Chinese texts need no word boundary. It suits
short questions to models that answer in sentences (the ``Includes`` of OpenAI's evals).
"""

from __future__ import annotations

import re

from trainer.evaluation.metrics.base import Case, mean_metric

_ACCEPT_COLUMN = "accept"


def includes(case: Case) -> float:
    """1 where an accepted text is in the answer, else 0."""
    accepted = case.row.get(_ACCEPT_COLUMN)
    texts = accepted if isinstance(accepted, list) and accepted else [case.reference]
    return float(any(_has(case.answer, str(text)) for text in texts))


def _has(answer: str, text: str) -> bool:
    bounded = rf"(?<![A-Za-z0-9]){re.escape(text.strip())}(?![A-Za-z0-9])"
    return re.search(bounded, answer, re.IGNORECASE) is not None


INCLUDES = mean_metric("includes", "answers that include an accepted text", includes)
