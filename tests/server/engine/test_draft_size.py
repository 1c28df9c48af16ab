"""How many tokens to draft for whom."""

from __future__ import annotations

import random
from itertools import accumulate, product
from math import prod
from operator import mul

import pytest

from server.engine.draft_size import DraftSize


def taught(fixed: float, row: float, rows: list[int], noise: float = 0.0) -> DraftSize:
    """Steps of so many rows, each of which takes ``row`` seconds, beside ``fixed`` seconds."""
    size, rng = DraftSize(), random.Random(0)
    for count in rows:
        size.observe(count, (fixed + row * count) * (1 + noise * rng.random()))
    return size


@pytest.mark.parametrize(("fixed", "row"), [(0.1, 0.1), (0.1, 0.01), (0.01, 0.0001)])
@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_learns_what_a_row_takes(fixed: float, row: float, noise: float) -> None:
    size = taught(fixed, row, [1, 5, 9, 17, 3, 1, 12] * 20, noise)
    assert size.fixed_rows == pytest.approx(fixed / row, rel=0.25 + 4 * noise)


def test_learns_from_streams_that_come_and_go() -> None:
    assert taught(0.2, 0.01, [1] * 20 + [8] * 20 + [2] * 20).fixed_rows == pytest.approx(20, rel=0.3)


def test_rows_that_cost_nothing_are_bounded() -> None:
    assert 50 < taught(0.01, 0.0, [1, 9] * 40).fixed_rows <= 256
    assert taught(0.2, -0.01, [1, 9] * 40).fixed_rows == 256


@pytest.mark.parametrize("rows", [[], [1] * 50, [32] * 50])
def test_steps_that_are_all_alike_teach_nothing(rows: list[int]) -> None:
    assert taught(0.1, 0.1, rows).fixed_rows == pytest.approx(4)


def test_what_was_learned_is_not_forgotten_while_steps_are_alike() -> None:
    assert taught(0.2, 0.01, [1, 9, 2, 8] * 8 + [2] * 1000).fixed_rows == pytest.approx(20, rel=0.3)


def test_learns_anew_when_rows_become_dearer() -> None:
    size = taught(0.2, 0.01, [1, 9] * 100)
    for rows in [1, 9] * 100:
        size.observe(rows, 0.02 + 0.01 * rows)
    assert size.fixed_rows == pytest.approx(2, abs=1)


def test_one_step_that_hangs_does_not_change_its_mind() -> None:
    size = taught(0.1, 0.02, [1, 5, 9] * 30)
    size.observe(9, 60.0)
    assert size.fixed_rows == pytest.approx(5, abs=3)


def test_far_more_rows_at_once_are_nothing_that_hangs() -> None:
    assert taught(0.06, 0.01, [1] * 50 + [64] * 3).fixed_rows == pytest.approx(6, rel=0.2)


def test_a_stream_alone_drafts_what_is_likelier_than_its_part_of_a_step() -> None:
    size = taught(0.09, 0.01, [1, 5, 9] * 40)  # a tenth of a step
    assert size.share(1, [[0.05]]) == [0]
    assert size.share(1, [[0.2]]) == [1]
    assert size.share(1, [[]]) == [0]
    assert size.share(0, []) == []


def test_many_streams_draft_only_what_is_nearly_certain() -> None:
    size = taught(0.05, 0.01, [8, 32, 40, 64] * 40)
    assert size.share(64, [[0.9, 0.8]] * 64) == [0] * 64
    assert size.share(64, [[0.99, 0.3]] * 64) == [1] * 64
    assert size.share(2, [[0.9, 0.8]] * 2) == [2, 2]


@pytest.mark.parametrize("seed", range(12))
def test_no_other_shares_are_better(seed: int) -> None:
    rng = random.Random(seed)
    size = taught(0.03 + 0.3 * rng.random(), 0.02, [1, 5, 9] * 40)
    drafts = [list(accumulate((rng.random() ** 0.3 for _ in range(4)), mul)) for _ in range(3)]
    streams = rng.choice([3, 5])

    def speeds(counts: tuple[int, ...] | list[int]) -> float:
        tokens: float = prod(1 + sum(draft[:count]) for draft, count in zip(drafts, counts, strict=True))
        return tokens / float((streams + size.fixed_rows + sum(counts)) ** streams)

    best = max(speeds(counts) for counts in product(range(5), repeat=3))
    assert speeds(size.share(streams, drafts)) == pytest.approx(best, rel=1e-9)


def test_streams_alike_get_the_most_tokens_a_second() -> None:
    size, draft = taught(0.07, 0.01, [1, 5, 9] * 40), list(accumulate([0.95] * 16, mul))
    rates = [(1 + sum(draft[:n])) / (8 * (1 + n) + size.fixed_rows) for n in range(17)]
    assert size.share(8, [draft] * 8) == [rates.index(max(rates))] * 8


def test_one_stream_does_not_slow_down_the_others_for_long_drafts() -> None:
    size, draft = taught(0.07, 0.01, [1, 5, 9] * 40), list(accumulate([0.97] * 16, mul))
    assert size.share(1, [draft])[0] > 8
    assert size.share(8, [draft])[0] <= 2, "a step becomes an eighth longer at most"
    assert size.share(8, [draft, *[[0.1]] * 7])[0] <= 2
