from __future__ import annotations

from collections.abc import Iterable

import pytest

from server.text.output.parts import AssistantMessage, PlainParser
from server.text.output.thoughts import MARKS, ThoughtParser, find_marks

CASES: list[tuple[str, bool, str, str, str]] = [  # marks, begun by the prompt, text, reasoning, content
    ("think", False, "<think>\nWhy?\n\nSo.\n</think>\n\nYes.\n", "Why?\n\nSo.", "Yes.\n"),
    ("think", False, "\n<think></think>Yes", "", "Yes"),
    ("think", False, "Yes, <think>no</think>", "", "Yes, <think>no</think>"),
    ("think", False, " \n Yes", "", " \n Yes"),
    ("think", False, "<thin", "", "<thin"),
    ("think", False, "<think>\ncut </thi", "cut </thi", ""),
    ("think", True, "Why?</think>Yes", "Why?", "Yes"),
    ("think", True, "<think>Why?</think>\nYes</think>", "Why?", "Yes</think>"),
    ("think", True, "cut  \n", "cut", ""),
    ("deepseek_r1", True, "Why?\n</think>\n\nYes", "Why?", "Yes"),
    ("mistral", False, "[THINK]Why?[/THINK]Yes", "Why?", "Yes"),
    ("granite", False, "Here is my thought process: Why? Here is my response: Yes", "Why?", "Yes"),
    ("granite", False, "Here's my thought process:\nWhy?\nHere is my response:\nYes", "Why?", "Yes"),
]


def parse(marks: str, begun: bool, pieces: Iterable[str]) -> tuple[AssistantMessage, int]:
    parser = ThoughtParser(MARKS[marks], PlainParser(), begun=begun)
    message = AssistantMessage()
    for piece in pieces:
        message.add(parser.feed(piece))
    message.add(parser.finish())
    return message, parser.thought_chars


@pytest.mark.parametrize(("marks", "begun", "text", "reasoning", "content"), CASES)
def test_thoughts_are_told_apart(marks: str, begun: bool, text: str, reasoning: str, content: str) -> None:
    whole = parse(marks, begun, [text])
    assert whole[0] == AssistantMessage(content, reasoning)
    assert parse(marks, begun, text) == whole
    for at in range(len(text) + 1):
        assert parse(marks, begun, [text[:at], text[at:]]) == whole


def test_how_much_is_thought() -> None:
    assert parse("think", False, ["<think>ab</think>", "\n\nyes"])[1] == len("<think>ab</think>")
    assert parse("think", True, ["ab"])[1] == 2
    assert parse("think", False, ["yes <think>"])[1] == 0


def test_a_template_tells_the_marks() -> None:
    assert find_marks("{{ '<think>\n' }}") == MARKS["think"]
    assert find_marks("[THINK]") == MARKS["mistral"]
    assert find_marks("plain") is None


def test_a_prompt_that_begins_the_thoughts() -> None:
    marks = MARKS["think"]
    assert marks.begun_by("<|im_start|>assistant\n<think>\n")
    assert not marks.begun_by("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert marks.left_open_by("<think>because")
    assert not marks.left_open_by("<think>because</think>so")
