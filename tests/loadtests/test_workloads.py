from __future__ import annotations

from collections import Counter
from itertools import islice, pairwise, takewhile

import numpy as np
import pytest

from loadtests.workloads import Popularity, calls, choose_models, poisson_arrivals, popularity_weights, prompt_of

MODELS = [f"m{i}" for i in range(8)]


def shares(popularity: Popularity, count: int = 20_000, alpha: float = 1.0) -> list[float]:
    chosen = Counter(islice(choose_models(MODELS, popularity, seed=(3,), alpha=alpha), count))
    return [chosen[model] / count for model in MODELS]


def test_identical_asks_only_the_first() -> None:
    assert shares("identical") == [1.0] + [0.0] * 7


def test_distinct_goes_round() -> None:
    assert list(islice(choose_models(MODELS, "distinct", seed=(0,)), 20)) == (MODELS * 3)[:20]


def test_uniform_is_even() -> None:
    assert shares("uniform") == pytest.approx([1 / 8] * 8, abs=0.01)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_zipf_follows_its_law(alpha: float) -> None:
    law = [1 / k**alpha for k in range(1, 9)]
    expected = [value / sum(law) for value in law]
    assert popularity_weights("zipf", 8, alpha) == pytest.approx(expected)
    assert shares("zipf", alpha=alpha) == pytest.approx(expected, abs=0.01)


def test_the_same_seed_gives_the_same_calls_and_another_seed_others() -> None:
    def first(seed: int) -> list[object]:
        return list(islice(calls(MODELS, "zipf", prompt_tokens=32, seed=(seed,)), 50))

    assert first(1) == first(1)
    assert first(1) != first(2)


def test_prompts_have_the_asked_length_and_differ_from_the_first_word() -> None:
    prompts = [prompt_of(i, 128, (0,)) for i in range(100)]
    assert {len(prompt.split()) for prompt in prompts} == {128 - 12 + 3}
    assert len({prompt.split()[0] for prompt in prompts}) > 95
    assert prompt_of(0, 1, (0,)).count(" ") == 3


def test_poisson_gaps_are_exponential_with_the_asked_rate() -> None:
    arrivals = list(islice(poisson_arrivals(4.0, seed=5), 20_000))
    gaps = np.array([b - a for a, b in pairwise([0.0, *arrivals])])
    assert gaps.min() >= 0
    assert gaps.mean() == pytest.approx(1 / 4, rel=0.03)
    assert gaps.std() == pytest.approx(1 / 4, rel=0.03)  # of an exponential: its mean
    assert (gaps > 0.5).mean() == pytest.approx(np.exp(-2), abs=0.01)


def test_poisson_counts_vary_as_poisson_and_repeat_with_the_seed() -> None:
    arrivals = list(takewhile(lambda t: t < 2000, poisson_arrivals(10.0, seed=1)))
    assert arrivals == list(takewhile(lambda t: t < 2000, poisson_arrivals(10.0, seed=1)))
    assert arrivals != list(takewhile(lambda t: t < 2000, poisson_arrivals(10.0, seed=2)))
    counts = np.bincount(np.array(arrivals).astype(int), minlength=2000)
    assert counts.var() == pytest.approx(counts.mean(), rel=0.1)
