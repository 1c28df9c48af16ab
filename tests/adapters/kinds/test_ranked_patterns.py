from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from adapters.kinds.patterns import ends_of
from adapters.kinds.ranked_patterns import RankedPatterns

NAMES = st.text("ab.", max_size=6)
EXPRESSIONS = st.sampled_from(["a|b", "a.*", "[ab]", "(b", ""])


def value(ranked: RankedPatterns[int], module: str, tried: list[str]) -> int:
    def matches(pattern: str) -> bool:
        tried.append(pattern)
        return re.fullmatch(rf"(.*\.)?({pattern})", module) is not None

    return ranked.value((module, *ends_of(module)), matches, -1)


@given(st.lists(NAMES | EXPRESSIONS.filter(lambda e: e != "(b"), unique=True, max_size=6), NAMES)
def test_the_first_that_matches_counts(patterns: list[str], module: str) -> None:
    matching = [i for i, p in enumerate(patterns) if re.fullmatch(rf"(.*\.)?({p})", module)]
    ranked = RankedPatterns({pattern: i for i, pattern in enumerate(patterns)})
    assert value(ranked, module, []) == (matching[0] if matching else -1)


def test_plain_names_are_not_tried_one_by_one() -> None:
    ranked = RankedPatterns({**{f"layers.{i}.q_proj": i for i in range(9000)}, "(b": 0})
    tried: list[str] = []
    assert value(ranked, "model.layers.8999.q_proj", tried) == 8999
    assert tried == []
