from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from trainer.config.data import Columns, DataConfig
from trainer.data.conversations import Message, conversation_of, needed_columns
from trainer.data.rows import RawRow
from trainer.errors import DataError

FILE = Path("rows.jsonl")


def conversation(values: dict[str, Any], **config: Any) -> tuple[Message, ...]:
    return conversation_of(FILE, RawRow(7, values), DataConfig(path="rows.jsonl", **config))


def test_columns_are_mapped_and_a_system_prompt_comes_first() -> None:
    columns = Columns(prompt="question", response="answer", system="rules")
    assert needed_columns(columns) == ["question", "answer", "rules"]
    row = {"question": "q", "answer": "a", "rules": "s"}
    assert [m.role for m in conversation(row, columns=columns)] == ["system", "user", "assistant"]
    assert [m.content for m in conversation({**row, "rules": " "}, columns=columns)] == ["q", "a"]
    assert conversation({"prompt": "q", "response": "a"}, system_prompt="s")[0] == Message("system", "s")


def test_messages_stand_for_themselves_and_keep_their_own_system_prompt() -> None:
    columns = Columns(messages="messages")
    assert needed_columns(columns) == ["messages"]
    own = [{"role": "system", "content": "mine"}, {"role": "user", "content": "q", "name": "x"}]
    assert conversation({"messages": own}, columns=columns, system_prompt="s") == (
        Message("system", "mine"),
        Message("user", "q"),
    )


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"prompt": 5, "response": "a"}, "line 7: 'prompt' must be text, not a number"),
        ({"prompt": "q", "response": None}, "line 7: 'response' must be text, not null"),
        ({"prompt": "q", "response": {"x": 1}}, "line 7: 'response' must be text, not an object"),
    ],
)
def test_cells_of_another_type_are_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        conversation(values)


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ("hello", "must be a list of messages, not str"),
        (["hello"], "message 0 must be an object with role and content"),
        ([{"role": "user"}], "content of message 0 must be text, not null"),
        ([{"role": 1, "content": "a"}], "role of message 0 must be text, not a number"),
        ([{"role": "user", "content": [{"type": "text"}]}], "content of message 0 must be text, not a list"),
    ],
)
def test_malformed_messages_are_refused(messages: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        conversation({"messages": messages}, columns=Columns(messages="messages"))
