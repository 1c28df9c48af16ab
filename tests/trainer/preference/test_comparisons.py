"""Rows of preference data to prompts and answers, and what is wrong with them. Every shape: test_preference_data.py."""

from __future__ import annotations

from typing import Any

import pytest

from trainer.config.data import Columns, DataConfig
from trainer.config.preference import PreferenceColumns
from trainer.data.conversations import DroppedRow
from trainer.data.messages import Message
from trainer.data.rows import RawRow
from trainer.errors import DataError
from trainer.preference.comparisons import ComparisonReader

USER = {"role": "user", "content": "hi"}
ASSISTANT = {"role": "assistant", "content": "yes"}
READER = ComparisonReader(DataConfig(path="x"), PreferenceColumns())
CALL = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}


def reader(**data: Any) -> ComparisonReader:
    return ComparisonReader(DataConfig(path="x", **data), PreferenceColumns())


def row(**values: Any) -> RawRow:
    return RawRow("data.jsonl line 1", values)


@pytest.mark.parametrize(
    ("row", "kind", "words"),
    [
        ({"prompt": "hi", "chosen": "yes"}, "pair", r"line 1 has no column 'rejected' \(found: prompt, chosen\)"),
        ({"chosen": "yes", "rejected": "no"}, "pair", "line 1 has no prompt"),
        ({"prompt": "hi", "chosen": 3, "rejected": "no"}, "pair", "'chosen' must be text, a message or a list"),
        ({"prompt": "hi", "chosen": [USER], "rejected": "no"}, "pair", "must end with a message of the assistant"),
        ({"prompt": "hi", "completion": "yes", "label": "maybe"}, "judged", "must be true or false, not 'maybe'"),
        ({"prompt": "hi", "label": True}, "judged", "has no answer"),
        ({"prompt": "hi", "completion": "yes"}, "judged", "has no column 'label'"),
        ({"messages": [{"who": "x"}], "label": True}, "judged", "role of message 0 must be text, not null"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(row: Any, kind: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        getattr(READER, kind)(RawRow("data.jsonl line 1", row))


def test_a_pair_has_a_prompt_and_two_answers() -> None:
    pair = READER.pair(row(prompt="hi", chosen="yes", rejected=[{"role": "assistant", "content": "no"}]))
    assert pair.prompt == (Message("user", "hi"),)
    assert (pair.chosen, pair.rejected) == (Message("assistant", "yes"), Message("assistant", "no"))


def test_rows_of_mixed_shapes_are_read_row_by_row() -> None:
    for values in ({"prompt": "hi"}, {"messages": [USER]}, {"question": "hi"}):
        assert READER.pair(row(**values, chosen="yes", rejected="no")).prompt == (Message("user", "hi"),)


@pytest.mark.parametrize(
    ("instruction", "more", "expected"), [("do", "it", "do\nit"), ("do", " ", "do"), ("", "it", "it")]
)
def test_an_input_stands_below_its_instruction(instruction: str, more: str, expected: str) -> None:
    assert READER.prompt(row(instruction=instruction, input=more)) == (Message("user", expected),)


def test_a_prefix_and_a_system_prompt_come_first() -> None:
    found = reader(prompt_prefix="> ", system_prompt="brief").prompt(row(prompt="hi"))
    assert found == (Message("system", "brief"), Message("user", "> hi"))


def test_a_system_column_is_read_when_it_is_named_only() -> None:
    values = row(prompt="hi", system="s")
    assert READER.prompt(values) == (Message("user", "hi"),)
    named = reader(columns=Columns(system="system"))
    assert named.prompt(values) == (Message("system", "s"), Message("user", "hi"))
    with pytest.raises(DataError, match="line 1: 'system' must be text"):
        named.prompt(row(prompt="hi", system=None))
    with pytest.raises(
        DataError, match=r"no column 'system' .*; did you mean 'sytem'\? name yours in preference.columns"
    ):
        named.prompt(row(prompt="hi", sytem="s"))


def test_calls_are_part_of_an_answer() -> None:
    as_text = READER.pair(row(prompt="hi", chosen=CALL, rejected="no")).chosen
    assert as_text == Message("assistant", '{"name": "f", "arguments": {}}')
    by_template = reader(tools="template").pair(row(prompt="hi", chosen=CALL, rejected="no")).chosen
    assert by_template == Message("assistant", "", calls=('{"name": "f", "arguments": {}}',))


def test_weights_exclude_nothing_from_a_comparison() -> None:
    same = {**ASSISTANT, "weight": 0}
    with pytest.raises(DroppedRow, match="chosen and rejected are the same"):
        READER.pair(row(prompt="hi", chosen=same, rejected="yes"))


def test_a_judged_pair_is_two_judgements_and_a_prompt_loses_its_answer() -> None:
    good, bad = READER.judged(row(prompt="hi", chosen="yes", rejected="no"))
    assert [(one.completion.content, one.good) for one in (good, bad)] == [("yes", True), ("no", False)]
    assert READER.prompt(row(messages=[USER, ASSISTANT])) == (Message("user", "hi"),)
