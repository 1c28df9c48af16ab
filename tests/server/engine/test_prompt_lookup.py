"""Guesses of how a sequence goes on."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest

from server.engine.prompt_lookup import PromptLookup


def grown(prompt: Sequence[int], outputs: Sequence[int] = (), start: int = 0) -> PromptLookup:
    """What is known after ``outputs`` came one by one."""
    tokens = list(prompt)
    lookup = PromptLookup(tokens, start)
    for token in outputs:
        tokens.append(token)
        lookup.read()
    return lookup


@pytest.mark.parametrize(
    ("tokens", "guess"),
    [
        ([], []),
        ([5], []),
        ([5, 6], []),
        ([1, 2, 3, 4], []),
        ([1, 2, 7, 8, 9, 1, 2], [7, 8, 9, 1]),
        ([1, 2, 3, 7, 9, 2, 3, 8, 1, 2, 3], [7, 9, 2, 3]),  # three tokens that agree say more than two, later ones
        ([1, 2, 3, 1, 2, 4, 1, 2], [4, 1, 2, 4]),  # the last occurrence; what is copied from beyond the end repeats
        ([4, 4, 4], [4, 4, 4, 4]),
        ([1, 2, 1, 2, 1], [2, 1, 2, 1]),
        ([0, 0, 5, 9, 0, 5], [9, 0, 5, 9]),
    ],
)
def test_goes_on_as_after_the_last_occurrence(tokens: list[int], guess: list[int]) -> None:
    assert grown(tokens).guess(4) == guess
    assert grown([], tokens).guess(4) == guess, "whether it is the prompt or came one by one"
    assert len(grown(tokens).chances(4)) == len(guess)


def test_stays_with_its_source_while_that_is_right() -> None:
    """Three tokens stand elsewhere too, and later."""
    prompt = [*range(10, 30), 14, 15, 16, 99, 98]
    assert grown(prompt, [11, 12, 13, 14, 15, 16]).guess(3) == [17, 18, 19]
    assert grown(prompt, [14, 15, 16]).guess(3) == [99, 98, 14]
    assert grown(prompt, [11, 12, 13, 50, 14, 15, 16]).guess(3) == [99, 98, 11], "and looks anew when it was wrong"


def test_virtual_tokens_are_passed_over() -> None:
    assert grown([-1, -1, -1, -1], start=4).guess(2) == []
    assert grown([-1, -1, 5, 6, 7], [5, 6], start=2).guess(2) == [7, 5]


def test_chances_fall_along_a_guess_and_follow_what_was_right() -> None:
    text = list(range(40))
    new, copied = grown([*text, 0, 1]), grown([*text, 0, 1], text[2:30])
    for lookup in (new, copied):
        chances = lookup.chances(8)
        assert all(0 < b < a < 1 for a, b in pairwise(chances))
    assert copied.chances(8)[7] > 0.8 > new.chances(8)[7]
    assert new.chances(3) == new.chances(8)[:3]


def test_what_goes_wrong_again_and_again_is_not_trusted() -> None:
    prompt, outputs = [1, 2, 3], []
    for i in range(20):
        outputs += [1, 2, 100 + i]
    lookup = grown(prompt, [*outputs, 1, 2])
    assert lookup.chances(1)[0] < 0.05
    assert lookup.guess(1) == [119]


class Counted(list[int]):
    """Counts its tokens that are looked at."""

    looked_at = 0

    def __getitem__(self, key: Any) -> Any:
        found = super().__getitem__(key)
        self.looked_at += len(found) if isinstance(found, list) else 1
        return found


def test_a_token_takes_no_longer_in_a_long_sequence() -> None:
    rng = random.Random(0)
    tokens = Counted(rng.randrange(50) for _ in range(5000))
    lookup = PromptLookup(tokens)
    tokens.looked_at = 0
    for _ in range(500):
        tokens.append(rng.randrange(50))
        lookup.read()
        lookup.guess(4)
    assert tokens.looked_at <= 500 * 6


def plain_guess(tokens: list[int], count: int) -> list[int]:
    """The same by going through the whole sequence, without staying with a source."""
    for n in (3, 2):
        for place in range(len(tokens) - 1, n - 1, -1):
            if len(tokens) > n and tokens[place - n : place] == tokens[-n:]:
                known = list(tokens)
                for i in range(count):
                    known.append(known[place + i])
                return known[len(tokens) :]
    return []


@pytest.mark.parametrize("seed", range(20))
def test_equals_a_search_through_everything(seed: int) -> None:
    rng = random.Random(seed)
    tokens = [rng.randrange(2 + seed % 5) for _ in range(60)]
    for size in range(len(tokens)):
        assert PromptLookup(tokens[:size]).guess(6) == plain_guess(tokens[:size], 6)
