"""What a step may hold besides the tokens of those that generate."""

from __future__ import annotations

import pytest

from server.engine.step_budget import StepBudget


def tokens(size: StepBudget, streams: int = 0) -> int:
    """Of prompts in the next step, where what a step costs besides its rows takes as long as four of them."""
    return size.prompt_tokens(streams, fixed_rows=4.0)


def taught(*steps: tuple[int, int, float]) -> StepBudget:
    size = StepBudget()
    for prompts, others, seconds in steps:
        size.observe(prompts, others, seconds)
    return size


@pytest.mark.parametrize("steps", [(), ((100, 0, 1.0),)])
def test_a_decode_step_is_measured_first(steps: tuple[tuple[int, int, float], ...]) -> None:
    assert tokens(taught(*steps)) == 0


def test_the_first_prompt_is_begun_with_little() -> None:
    assert tokens(taught((0, 8, 1.0))) == 32


def test_prompts_take_one_and_a_half_decode_steps() -> None:
    assert tokens(taught((100, 0, 0.1), (0, 4, 0.05))) == 75
    assert tokens(taught((0, 4, 0.05), (100, 4, 0.15))) == 75, "what others take is not the prompts'"


def test_prompts_take_their_part_of_the_steps_in_which_they_generate() -> None:
    assert tokens(taught((100, 0, 0.1), (0, 4, 0.05)), streams=12) == 150, "steps of 16 rows' time, not of 8"
    assert tokens(taught((100, 0, 0.1), (0, 4, 0.05)), streams=2) == 75, "those who generate do so now"


def test_tokens_that_become_dearer_while_prompts_come_in_make_smaller_chunks() -> None:
    size = taught((100, 0, 0.1), (0, 1, 0.1))  # later a long context, or log-probabilities
    for _ in range(15):
        size.observe(100, 1, 0.5)
    size.observe(0, 1, 0.1)
    assert tokens(size) == pytest.approx(37.5, rel=0.05)


def test_a_token_of_a_prompt_counts_as_the_rows_that_take_as_long() -> None:
    assert taught((0, 4, 0.08)).token_rows(fixed_rows=4.0) == 1.0, "none was measured"
    assert taught((100, 0, 0.4), (0, 4, 0.08)).token_rows(fixed_rows=4.0) == pytest.approx(0.4), "10 ms are a row's"
    assert taught((100, 0, 0.01), (0, 4, 0.08)).token_rows(fixed_rows=4.0) == 0.1


def test_a_decode_step_is_measured_now_and_then() -> None:
    size = taught((100, 0, 0.1), (0, 1, 0.05))
    for _ in range(15):
        size.observe(100, 1, 0.15)
        assert tokens(size)
    size.observe(100, 1, 0.15)
    assert tokens(size) == 0
    size.observe(0, 1, 0.05)
    assert tokens(size)


@pytest.mark.parametrize(("before", "now"), [(1, 3), (32, 8)])
def test_a_decode_step_of_other_size_is_measured_at_once(before: int, now: int) -> None:
    size = taught((100, 0, 0.1), (0, before, 0.05), (100, now, 0.2))
    assert tokens(size) == 0
    size.observe(0, now, 0.1)
    assert tokens(size) == pytest.approx(150, rel=0.2)


def test_a_chunk_is_worth_reading_the_weights_for() -> None:
    assert tokens(taught((100, 0, 1.0), (0, 1, 0.01))) == 32


def test_the_machine_may_become_slower() -> None:
    size = taught((100, 0, 0.1), (0, 4, 0.05))
    for _ in range(20):
        size.observe(100, 0, 0.2)
    assert tokens(size) == pytest.approx(37.5, rel=0.05)


def test_other_work_takes_a_part_of_a_decode_step() -> None:
    assert taught().pause() == 0.03
    assert taught((0, 1, 0.02)).pause() == pytest.approx(0.004)
    assert taught((0, 1, 2.0)).pause() == 0.03
