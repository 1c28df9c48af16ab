"""Whether a corpus is written in Chinese, where words are not set apart and scores count characters."""

from __future__ import annotations

import re
from collections.abc import Sequence

from trainer.evaluation.metrics.base import Case

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
