from __future__ import annotations

from typing import Any

import pytest

from server.api.responses.items import messages_of
from server.errors import InvalidRequestError

USER = {"role": "user", "content": "x"}
THOUGHT = {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]}
CALLS = [{"type": "function_call", "call_id": id, "name": "look", "arguments": "{}"} for id in ("a", "b")]
OUTPUT = {"type": "function_call_output", "call_id": "a", "output": [{"type": "input_text", "text": "found"}]}


def test_a_turn_of_the_assistants_is_one_message() -> None:
    said = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Wait."}]}
    user, turn, result = messages_of([USER, THOUGHT, said, *CALLS, OUTPUT])
    assert user == {"role": "user", "content": "x"}
    assert (turn["role"], turn["reasoning_content"]) == ("assistant", "Hm.")
    assert turn["content"] == [{"type": "text", "text": "Wait."}]
    assert [call["id"] for call in turn["tool_calls"]] == ["a", "b"]
    assert turn["tool_calls"][0]["function"] == {"name": "look", "arguments": "{}"}
    assert result == {"role": "tool", "tool_call_id": "a", "content": [{"type": "text", "text": "found"}]}


def test_calls_may_stand_alone() -> None:
    _, turn, result, again = messages_of([USER, CALLS[0], OUTPUT, CALLS[1]])
    assert (turn["content"], len(turn["tool_calls"])) == (None, 1)
    assert result["role"] == "tool"
    assert [call["id"] for call in again["tool_calls"]] == ["b"]


def test_faults_of_earlier_items_are_those_of_the_response_before() -> None:
    with pytest.raises(InvalidRequestError) as raised:
        messages_of([OUTPUT, USER], earlier=1)
    assert str(raised.value.param).startswith("previous_response_id")
    with pytest.raises(InvalidRequestError) as raised:
        messages_of([USER, OUTPUT], earlier=1)
    assert raised.value.param == "input[0].call_id"


@pytest.mark.parametrize(
    "item", [{}, {"type": 5}, {"role": "user"}, {"role": "user", "content": [5]}, {**CALLS[0], "arguments": None}]
)
def test_no_item(item: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError):
        messages_of([item])
