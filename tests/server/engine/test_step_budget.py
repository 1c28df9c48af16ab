"""What a step may hold besides the tokens of those that generate."""

from __future__ import annotations

import pytest

from server.engine.step_budget import StepBudget


def taught(*steps: tuple[int, int, float]) -> StepBudget:
    size = StepBudget()
    for prompts, others, seconds in steps:
        size.observe(prompts, others, seconds)
    return size


@pytest.mark.parametrize("steps", [(), ((100, 0, 1.0),)])
def test_a_decode_step_is_measured_first(steps: tuple[tuple[int, int, float], ...]) -> None:
    assert taught(*steps).prompt_tokens() == 0


def test_the_first_prompt_is_begun_with_little() -> None:
    assert taught((0, 8, 1.0)).prompt_tokens() == 32


def test_prompts_take_two_decode_steps() -> None:
    assert taught((100, 0, 0.1), (0, 4, 0.05)).prompt_tokens() == 100
    assert taught((0, 4, 0.05), (100, 4, 0.15)).prompt_tokens() == 100, "what others take is not the prompts'"


def test_tokens_that_become_dearer_while_prompts_come_in_make_smaller_chunks() -> None:
    size = taught((100, 0, 0.1), (0, 1, 0.1))  # later a long context, or log-probabilities
    for _ in range(15):
        size.observe(100, 1, 0.5)
    size.observe(0, 1, 0.1)
    assert size.prompt_tokens() == pytest.approx(50, rel=0.05)


def test_a_decode_step_is_measured_now_and_then() -> None:
    size = taught((100, 0, 0.1), (0, 1, 0.05))
    for _ in range(15):
        size.observe(100, 1, 0.15)
        assert size.prompt_tokens()
    size.observe(100, 1, 0.15)
    assert size.prompt_tokens() == 0
    size.observe(0, 1, 0.05)
    assert size.prompt_tokens()


@pytest.mark.parametrize(("before", "now"), [(1, 3), (32, 8)])
def test_a_decode_step_of_other_size_is_measured_at_once(before: int, now: int) -> None:
    size = taught((100, 0, 0.1), (0, before, 0.05), (100, now, 0.2))
    assert size.prompt_tokens() == 0
    size.observe(0, now, 0.1)
    assert size.prompt_tokens() == pytest.approx(200, rel=0.2)


def test_a_chunk_is_worth_reading_the_weights_for() -> None:
    assert taught((100, 0, 1.0), (0, 1, 0.01)).prompt_tokens() == 32


def test_the_machine_may_become_slower() -> None:
    size = taught((100, 0, 0.1), (0, 4, 0.05))
    for _ in range(20):
        size.observe(100, 0, 0.2)
    assert size.prompt_tokens() == pytest.approx(50, rel=0.05)


def test_other_work_takes_a_part_of_a_decode_step() -> None:
    assert taught().pause() == 0.03
    assert taught((0, 1, 0.02)).pause() == pytest.approx(0.004)
    assert taught((0, 1, 2.0)).pause() == 0.03
