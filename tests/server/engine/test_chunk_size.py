"""How many tokens of prompts a step may hold."""

from __future__ import annotations

import pytest

from server.engine.chunk_size import ChunkSize


def taught(*steps: tuple[int, int, float]) -> ChunkSize:
    size = ChunkSize()
    for prompts, others, seconds in steps:
        size.observe(prompts, others, seconds)
    return size


@pytest.mark.parametrize("steps", [(), ((100, 0, 1.0),), ((0, 8, 0.01),), ((8, 1, 1.0), (0, 1, 0.1))])
def test_what_is_not_known_is_no_limit(steps: tuple[tuple[int, int, float], ...]) -> None:
    assert taught(*steps).limit() is None


def test_prompts_take_two_decode_steps() -> None:
    assert taught((100, 0, 0.1), (0, 4, 0.05)).limit() == 100
    assert taught((0, 4, 0.05), (100, 4, 0.15)).limit() == 100, "what others take is not the prompts'"


def test_more_that_generate_are_seen_while_prompts_come_in() -> None:
    size = taught((100, 0, 0.1), (0, 1, 0.05))
    for _ in range(20):
        size.observe(100, 32, 0.2)
    assert size.limit() == pytest.approx(200, rel=0.05)


def test_a_chunk_is_worth_reading_the_weights_for() -> None:
    assert taught((100, 0, 1.0), (0, 1, 0.01)).limit() == 32


def test_the_machine_may_become_slower() -> None:
    size = taught((100, 0, 0.1), (0, 4, 0.05))
    for _ in range(20):
        size.observe(100, 0, 0.2)
    assert size.limit() == pytest.approx(50, rel=0.05)
