"""Messages as data sets write them: roles, calls, and what is wrong with them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from trainer.config.data import MessageTags
from trainer.data.messages import (
    ASSISTANT,
    Message,
    key_of,
    last_answer,
    messages_of,
    spelled_usually,
    with_system,
)
from trainer.errors import DataError

USER, ANSWER = Message("user", "q"), Message(ASSISTANT, "a")


def turns(*roles: str) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": "x"} for role in roles]}


def test_roles_may_be_written_large_and_unknown_ones_are_refused() -> None:
    messages = messages_of("a", turns("System", "User", "ASSISTANT", "Tool", "assistant")["messages"])
    assert [message.role for message in messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert [message.role for message in messages_of("a", turns("documents", "tool_response")["messages"])] == [
        "documents",
        "tool_response",
    ]
    with pytest.raises(DataError, match="a: message 1: the role 'usr' is none; did you mean 'user'"):
        messages_of("a", turns("system", "usr")["messages"])
    with pytest.raises(DataError, match="tool_calls must be a list, not a number"):
        messages_of("a", [{"role": "assistant", "content": "x", "tool_calls": 5}])


def test_a_role_that_is_null_leaves_the_word_to_from() -> None:
    """Tables of rows in both styles hold null for what a row lacks."""
    both = {"role": None, "content": None, "from": "human", "value": "q"}
    assert messages_of("a", [both]) == (USER,)


def test_keys_and_roles_may_be_spelled_otherwise() -> None:
    tags = MessageTags(role_tag="who", content_tag="what", user_tag="client", assistant_tag="agent")
    rows = [{"who": "client", "what": "q"}, {"who": "agent", "what": "a", "weight": 0}]
    for value in (rows, json.dumps(rows)):
        messages = messages_of("a", spelled_usually("a", value, tags))
        assert messages == (USER, Message(ASSISTANT, "a", learned=False))
    assert spelled_usually("a", rows, MessageTags()) is rows
    roles = MessageTags(user_tag="client")
    assert messages_of("a", spelled_usually("a", [{"from": "client", "value": "q"}], roles)) == (USER,)
    assert messages_of("a", spelled_usually("a", [{"role": "client", "content": "q"}], roles)) == (USER,)
    with pytest.raises(DataError, match="a: message 0 must be an object with who and what"):
        spelled_usually("a", [{"role": "user", "content": "q"}], tags)


def test_messages_may_be_json_text() -> None:
    assert messages_of("a", '[{"from": "gpt", "value": "a"}]') == (ANSWER,)
    with pytest.raises(DataError, match="a must be a list of messages, not an object"):
        messages_of("a", "{}")


@pytest.mark.parametrize(
    ("text", "conversation", "expected"),
    [
        ("s", (USER,), (Message("system", "s"), USER)),
        (None, (USER,), (USER,)),
        ("", (USER,), (USER,)),
        ("s", (Message("system", "own"), USER), (Message("system", "own"), USER)),
    ],
)
def test_a_system_message_comes_first_unless_there_is_one(text: Any, conversation: Any, expected: Any) -> None:
    assert with_system(conversation, text) == expected


def test_the_last_answer_is_the_assistants_last_message() -> None:
    assert last_answer((USER, ANSWER, USER, ANSWER, USER)) == 3


def test_keys_are_equal_for_equal_conversations_only() -> None:
    assert key_of((USER, ANSWER)) == key_of((Message("user", "q"), Message(ASSISTANT, "a")))
    assert len({key_of(one) for one in ((USER, ANSWER), (USER,), (ANSWER, USER), (USER, Message(ASSISTANT, "b")))}) == 4
