"""What is asked, of whom and when: everything random is drawn here, before the load starts, from one seed.

It knows nothing of HTTP or of time measurement.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

Popularity = Literal["identical", "distinct", "uniform", "zipf"]
POPULARITIES: tuple[str, ...] = get_args(Popularity)

# Frequent English words: one token each in the vocabularies of today's models.
# fmt: off
WORDS = [
    "the", "a", "of", "and", "to", "in", "that", "it", "was", "for", "on", "are", "with", "as", "his", "they", "at",
    "be", "this", "from", "have", "or", "by", "one", "had", "not", "but", "what", "all", "were", "when", "we",
    "there", "can", "an", "your", "which", "their", "said", "if", "do", "will", "each", "about", "how", "up", "out",
    "them", "then", "she", "many", "some", "so", "these", "would", "other", "into", "has", "more", "her", "two",
    "like", "him", "see", "time", "could", "no", "make", "than", "first", "been", "its", "who", "now", "people",
    "my", "made", "over", "did", "down", "only", "way", "find", "use", "may", "water", "long", "little", "very",
    "after", "words", "called", "just", "where", "most", "know",
]
# fmt: on


@dataclass(frozen=True)
class Call:
    """One request to make: ``index`` counts the calls of a run."""

    index: int
    model: str
    prompt: str


Seed = tuple[int, ...]


def prompt_of(index: int, num_tokens: int, seed: Seed) -> str:
    """A text of about ``num_tokens`` tokens. It begins with its own number, so no two share a cached beginning."""
    rng = np.random.default_rng([*seed, index])
    opening = f"{rng.integers(10**6):06d} Text {index}: "  # about 12 tokens where every digit is one
    words = rng.choice(WORDS, size=max(1, num_tokens - 12))
    return opening + " ".join(map(str, words))


def popularity_weights(popularity: Popularity, count: int, alpha: float = 1.0) -> np.ndarray:
    """The share of requests for each of ``count`` models [count]; ``distinct`` is not random and gives equal shares."""
    if popularity == "identical":
        weights = np.eye(1, count)[0]
    elif popularity == "zipf":
        weights = 1.0 / np.arange(1, count + 1) ** alpha
    else:
        weights = np.ones(count)
    shares: np.ndarray = weights / weights.sum()
    return shares


def choose_models(
    models: Sequence[str], popularity: Popularity, *, seed: Seed, alpha: float = 1.0, block: int = 4096
) -> Iterator[str]:
    """An endless sequence of model names.

    ``identical`` is always the first, ``distinct`` goes round so that neighbours differ, ``uniform`` draws each with
    the same chance, ``zipf`` the k-th with a chance proportional to 1 / k^alpha.
    """
    if popularity == "distinct":
        yield from itertools.cycle(models)
    rng = np.random.default_rng(seed)
    weights = popularity_weights(popularity, len(models), alpha)
    while True:
        yield from (models[i] for i in rng.choice(len(models), size=block, p=weights))


def calls(
    models: Sequence[str], popularity: Popularity, *, prompt_tokens: int, seed: Seed, alpha: float = 1.0
) -> Iterator[Call]:
    """An endless sequence of calls; the same arguments give the same calls."""
    for index, model in enumerate(choose_models(models, popularity, seed=seed, alpha=alpha)):
        yield Call(index, model, prompt_of(index, prompt_tokens, seed))


def poisson_arrivals(rate: float, *, seed: int, block: int = 4096) -> Iterator[float]:
    """Endless arrival times in seconds from the start, ``rate`` a second on average with exponential gaps."""
    rng = np.random.default_rng([seed, 1])
    now = 0.0
    while True:
        for gap in rng.exponential(1.0 / rate, size=block):
            now += float(gap)
            yield now
