"""Shares of answers that are right as they stand: the same text, label or number, or one that includes it.

``exact_match``: the answer is the reference, but for white space around both; the same as the trainer's own at the end
of a run (trainer.loop.greedy).

``includes``: the answer includes one of the row's accepted texts, as whole words, without regard to case. The accepted
texts are the row's column ``accept``, else the reference; Chinese texts need no word boundary. It suits short questions
to models that answer in sentences (the ``Includes`` of OpenAI's evals).

``label_accuracy``: the answer names the right label, read as a person would: upper and lower case, ``_``, ``-`` and
spaces, and a full stop or quotes around the label make no difference.

``gsm8k_accuracy``: the final number is the reference's (Cobbe et al. 2021, Training Verifiers to Solve Math Word
Problems). It stands after ``####`` as in the data, or is the last number of the text (as lm-evaluation-harness's
flexible-extract takes it). Numbers are compared by value: 1,000 is 1000.0.
"""

from __future__ import annotations

import re
from decimal import Decimal

from trainer.evaluation.metrics.metric import Case, mean_metric


def is_exact(case: Case) -> float:
    """1 for an exact answer, else 0."""
    return float(case.answer.strip() == case.reference.strip())


EXACT_MATCH = mean_metric("exact_match", "answers equal to the reference, but for white space around", is_exact)
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
_AROUND = " \t\r\n.。\"'`*"


def label_of(text: str) -> str:
    """``text`` in the form in which labels are compared."""
    return re.sub(r"[\s_-]+", " ", text.strip(_AROUND)).casefold()


def is_label(case: Case) -> float:
    """1 where the labels are the same, else 0."""
    return float(label_of(case.answer) == label_of(case.reference))


LABEL_ACCURACY = mean_metric("label_accuracy", "answers that name the right label, case and quotes aside", is_label)
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
