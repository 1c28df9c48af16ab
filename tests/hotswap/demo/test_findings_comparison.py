from __future__ import annotations

import pytest

from hotswap.demo.asking import Answer
from hotswap.demo.findings import Verdict, compare_all, compare_answers, key_of
from tests.hotswap.demo.answers import answer


def test_equal_answers_are_the_same() -> None:
    assert compare_answers(answer(["a", "b"]), answer(["a", "b"])) is Verdict.SAME


def test_another_token_is_a_mix_up() -> None:
    assert compare_answers(answer(["a", "b"]), answer(["a", "c"])) is Verdict.MIXED


def test_a_tie_that_both_runs_saw_is_rounding_and_ends_the_comparison() -> None:
    loaded = answer(["a", ("b", {"c": -0.75}), "x"])
    alone = answer(["a", ("c", {"b": -0.75}), "y"])
    assert compare_answers(loaded, alone) is Verdict.ROUNDING


@pytest.mark.parametrize(("ours", "theirs"), [(-0.75, -3.0), (-3.0, -0.75)])
def test_a_tie_that_only_one_run_saw_is_a_mix_up(ours: float, theirs: float) -> None:
    assert compare_answers(answer([("b", {"c": ours})]), answer([("c", {"b": theirs})])) is Verdict.MIXED


def test_a_shorter_answer_is_a_mix_up_unless_its_end_was_near() -> None:
    assert compare_answers(answer(["a"]), answer(["a", "b"])) is Verdict.MIXED
    assert compare_answers(answer(["a", "b"]), answer(["a"])) is Verdict.MIXED
    assert compare_answers(answer(["a"]), answer(["a", ("b", {"<|im_end|>": -0.75})])) is Verdict.ROUNDING
    assert compare_answers(answer(["a"]), answer(["a", ("b", {"<|im_end|>": -2.0})])) is Verdict.MIXED


def test_answers_are_compared_with_the_lone_one_of_their_own_version_and_prompt() -> None:
    lone = [
        answer(["old"], version="contacts@1"),
        answer(["new"], version="contacts@2"),
        answer(["base"], model="base", version=""),
    ]
    loaded = [
        answer(["old"], version="contacts@1"),
        answer(["old"], version="contacts@2"),  # said to be version 2, but speaks like version 1
        answer(["base"], model="base", version=""),
        answer(["base"], model="base", version="", prompt="never asked alone"),
        answer(["junk"], version="contacts@1", error="APIError"),
    ]
    by_key: dict[object, Answer] = {key_of(a): a for a in lone}
    assert compare_all(loaded, by_key) == {Verdict.SAME: 2, Verdict.MIXED: 1}  # type: ignore[arg-type]
