"""Beam search over toy distributions, against an exhaustive one."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from server.api.beam_search import Beam, BeamParams, BeamSearch
from server.engine.messages import TokenLogprobs

END = 0


def among(weights: dict[int, float]) -> TokenLogprobs:
    total = sum(weights.values())
    told = sorted(((token, math.log(weight / total)) for token, weight in weights.items()), key=lambda pair: -pair[1])
    return TokenLogprobs(told[0][0], told[0][1], tuple(told))


def model(seed: int, vocab: int) -> dict[tuple[int, ...], TokenLogprobs]:
    """The likeliest tokens behind any three, by chance."""
    rng = random.Random(seed)
    made: dict[tuple[int, ...], TokenLogprobs] = {}
    for length in range(4):
        for tokens in itertools.product(range(vocab), repeat=length):
            made[tokens] = among({token: rng.random() ** 2 + 1e-6 for token in range(vocab)})
    return made


def search(params: BeamParams, told: dict[tuple[int, ...], TokenLogprobs], **options: int) -> list[Beam]:
    found = BeamSearch(params, frozenset({END}), 4, **options)
    while not found.is_over:
        found.advance([told[beam.tokens] for beam in found.running])
    return found.best


@pytest.mark.parametrize("seed", range(8))
def test_a_wide_search_finds_the_best_there_is(seed: int) -> None:
    vocab = 3
    told = model(seed, vocab)
    best = search(BeamParams(32, 2, length_penalty=0.0), told)

    def every(tokens: tuple[int, ...], score: float) -> list[tuple[float, tuple[int, ...]]]:
        if len(tokens) == 4 or (tokens and tokens[-1] == END):
            return [(score, tokens)]
        rows = told[tokens].top
        return [found for token, logprob in rows for found in every((*tokens, token), score + logprob)]

    expected = sorted(every((), 0.0), reverse=True)[:5]
    assert [beam.tokens for beam in best[:5]] == [tokens for _, tokens in expected]
    assert [beam.score for beam in best[:5]] == pytest.approx([score for score, _ in expected])
    for beam in best:
        assert beam.score == pytest.approx(sum(chosen.logprob for chosen in beam.chosen))
        assert [chosen.token_id for chosen in beam.chosen] == list(beam.tokens)
        assert beam.ended == (beam.tokens[-1] == END)


def test_one_beam_is_greedy() -> None:
    told = {tokens: among({END: 1, 1: 3, 2: 2}) for n in range(4) for tokens in itertools.product(range(3), repeat=n)}
    assert [beam.tokens for beam in search(BeamParams(1, 1), told)] == [(1, 1, 1, 1)]


def test_no_end_before_min_tokens() -> None:
    told = {tokens: among({END: 9, 1: 1, 2: 1}) for n in range(4) for tokens in itertools.product(range(3), repeat=n)}
    assert search(BeamParams(2, 1), told)[0].tokens == (END,)
    assert len(search(BeamParams(2, 1), told, min_tokens=2)[0].tokens) == 3


def test_early_stopping_takes_the_first_that_end() -> None:
    told = {
        (): among({1: 60, END: 35, 2: 5}),
        (1,): among({1: 90, END: 5, 2: 5}),
        (2,): among({END: 98, 1: 1, 2: 1}),
        **{tokens: among({END: 90, 1: 5, 2: 5}) for n in (2, 3) for tokens in itertools.product(range(3), repeat=n)},
    }
    early = search(BeamParams(2, 2, length_penalty=0.0, early_stopping=True), told)
    late = search(BeamParams(2, 2, length_penalty=0.0), told)
    assert [beam.tokens for beam in early] == [(END,), (2, END)]
    assert [beam.tokens for beam in late] == [(1, 1, END), (END,)]


@pytest.mark.parametrize("seed", range(4))
def test_many_ends_need_few_tokens(seed: int) -> None:
    ends, vocab = frozenset(range(6)), 12
    told, made = model(seed, vocab), []
    for few in (False, True):
        found = BeamSearch(BeamParams(3, 3), ends, 4)
        assert found.num_top == 3 + len(ends)
        while not found.is_over:
            known = [told[beam.tokens] for beam in found.running]
            found.advance(
                [TokenLogprobs(one.token_id, one.logprob, one.top[: found.num_top]) for one in known] if few else known
            )
        made.append([beam.tokens for beam in found.best])
    assert made[0] == made[1]
