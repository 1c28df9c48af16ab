"""Whether an answer given under load is the one that the same model gives alone.

Two greedy runs may part where two tokens are equally likely up to rounding: another batch adds numbers up in another
order. From there on they cannot be compared, so an answer counts as mixed only if it parts from the lone one at a
token that rounding does not explain.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import zip_longest

from hotswap.demo.asking import Answer, Token

NEAR_TIE = 0.1  # difference of log-probabilities: the rounding of bf16 reaches a few hundredths


class Verdict(StrEnum):
    """What a comparison says."""

    SAME = "same"
    ROUNDING = "rounding"
    MIXED = "mixed"


def compare(loaded: Answer, alone: Answer) -> Verdict:
    """Compare two greedy answers of one model to one prompt, token by token."""
    for ours, theirs in zip_longest(loaded.tokens, alone.tokens):
        if ours is None or theirs is None:
            longer = ours or theirs
            return Verdict.ROUNDING if _end_was_near(longer) else Verdict.MIXED
        if ours.text != theirs.text:
            near = _near(theirs, ours.text) and _near(ours, theirs.text)
            return Verdict.ROUNDING if near else Verdict.MIXED
    return Verdict.SAME


def _near(token: Token, other: str) -> bool:
    """Whether ``other`` was about as likely as ``token`` where that was chosen."""
    return token.logprob - token.top.get(other, float("-inf")) <= NEAR_TIE


def _end_was_near(token: Token | None) -> bool:
    assert token is not None  # zip_longest gives one of the two
    return any(_near(token, other) for other in token.top if other.startswith("<|"))


@dataclass(frozen=True)
class Key:
    """What a greedy answer is determined by: what served it (the base's name for the base) and what was asked."""

    served_by: str
    prompt: str
    max_tokens: int
    ignore_eos: bool


def key_of(answer: Answer) -> Key:
    """The key of an answer."""
    asked = answer.question
    return Key(answer.version or asked.model, asked.prompt, asked.max_tokens, asked.ignore_eos)


def compare_all(loaded: Iterable[Answer], alone: Mapping[Key, Answer]) -> Counter[Verdict]:
    """Verdicts on all complete ``loaded`` answers that have a lone one."""
    pairs = ((answer, alone.get(key_of(answer))) for answer in loaded if answer.error is None)
    return Counter(compare(answer, other) for answer, other in pairs if other is not None)
