from __future__ import annotations

from typing import Any

import pytest

from server.files.lines import RowError
from server.files.training_rows import RowKind, kind_of_row, trainer_row

USER = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}


def read(row: dict[str, Any]) -> dict[str, Any]:
    return trainer_row(row, kind_of_row(row))


def test_conversations_keep_what_the_trainer_reads() -> None:
    tool = {"type": "function", "function": {"name": "f"}}
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": None, "tool_calls": [CALL], "weight": 0, "refusal": None},
        {"role": "tool", "content": "7", "tool_call_id": "c1"},
        {"role": "assistant", "content": "seven", "weight": 1, "name": "bot"},
    ]
    row = read({"messages": messages, "tools": [tool], "parallel_tool_calls": False})
    assert row["tools"] == [tool]
    assert [message["content"] for message in row["messages"]] == ["be brief", "ab", "", "7", "seven"]
    assert row["messages"][2] == {"role": "assistant", "content": "", "weight": 0, "tool_calls": [CALL]}
    assert row["messages"][4] == {"role": "assistant", "content": "seven", "weight": 1, "name": "bot"}


def test_functions_of_the_older_form_are_tools() -> None:
    called = {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}}
    row = read({"messages": [USER, called], "functions": [{"name": "f"}]})
    assert row["tools"] == [{"type": "function", "function": {"name": "f"}}]
    assert row["messages"][1]["function_call"] == {"name": "f", "arguments": "{}"}


def test_preferences_become_pairs() -> None:
    other = {"role": "assistant", "content": "b"}
    row = {"input": {"messages": [USER]}, "preferred_output": [ANSWER], "non_preferred_output": [other]}
    assert kind_of_row(row) is RowKind.PREFERENCE
    assert read(row) == {"messages": [USER], "chosen": [ANSWER], "rejected": [other]}


def test_texts_stay_what_they_are() -> None:
    assert read({"prompt": "p", "completion": "c"}) == {"prompt": "p", "completion": "c"}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": "x"}, "neither `messages`"),
        ({"messages": "x"}, "messages: must be a list of messages, not a text"),
        ({"messages": []}, "messages: is empty"),
        ({"messages": [USER, 3]}, r"messages\[1\]: must be an object"),
        ({"messages": [USER, {"role": "bot", "content": "a"}]}, r"messages\[1\].role: must be .*not 'bot'"),
        ({"messages": [USER, {"role": "assistant"}]}, r"messages\[1\].content: is missing"),
        ({"messages": [USER, {**ANSWER, "content": 3}]}, r"messages\[1\].content: must be a text, not a number"),
        ({"messages": [USER, {**ANSWER, "weight": 0.5}]}, r"messages\[1\].weight: must be 0 or 1"),
        ({"messages": [USER, {**ANSWER, "weight": True}]}, r"messages\[1\].weight: must be 0 or 1"),
        ({"messages": [{**USER, "weight": 1}, ANSWER]}, r"messages\[0\].weight: only messages of the assistant"),
        ({"messages": [USER, {**ANSWER, "weight": 0}]}, "every message of the assistant has weight 0"),
        ({"messages": [USER]}, "must end with the assistant's"),
        ({"messages": [{"role": "system", "content": "s"}, ANSWER]}, "nothing stands before"),
        ({"messages": [USER, {**ANSWER, "content": " "}]}, r"messages\[1\].content: is empty"),
        ({"messages": [{**USER, "tool_calls": [CALL]}, ANSWER]}, "only the assistant calls"),
        ({"messages": [USER, {"role": "tool", "content": "7"}, ANSWER]}, r"messages\[1\]: .* there is no call in"),
        (
            {
                "messages": [
                    USER,
                    {**ANSWER, "tool_calls": [CALL]},
                    {"role": "tool", "content": "7", "tool_call_id": "c2"},
                    ANSWER,
                ]
            },
            r"messages\[2\]: has the role tool, but its tool_call_id 'c2' is of no call",
        ),
        ({"messages": [USER, {**ANSWER, "tool_calls": [{"function": {"name": "f"}}]}]}, "arguments: is missing"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, ANSWER]},
            "only parts of type text can be learned, not 'image_url'",
        ),
        ({"messages": [USER, ANSWER], "tools": [{"name": "f"}]}, r"tools\[0\]: must be"),
        ({"preferred_output": [ANSWER], "non_preferred_output": [ANSWER]}, "input: must be an object"),
        (
            {"input": {"messages": [USER]}, "preferred_output": [ANSWER], "non_preferred_output": [ANSWER]},
            "the same as preferred_output",
        ),
        (
            {"input": {"messages": [USER]}, "preferred_output": [USER], "non_preferred_output": [ANSWER]},
            "preferred_output: must be one message of the assistant",
        ),
        ({"prompt": "p", "completion": None}, "completion: is missing"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(row: dict[str, Any], said: str) -> None:
    with pytest.raises(RowError, match=said):
        read(row)
