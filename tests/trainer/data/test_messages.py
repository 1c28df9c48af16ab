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
    pairs_of,
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


@pytest.mark.parametrize("name", ["hummany", "gtp", "asistant", "usr", "assisstant", "sytem", "fuction", "Humann"])
@pytest.mark.parametrize("keys", [("role", "content"), ("from", "value")])
def test_roles_that_are_nearly_usual_ones_are_refused_with_these(name: str, keys: tuple[str, str]) -> None:
    with pytest.raises(DataError, match=f"a: message 0: the role '{name}' is none; did you mean '.*data.roles"):
        messages_of("a", [dict(zip(keys, (name, "x"), strict=True))])


def test_other_roles_are_those_that_the_configuration_names() -> None:
    messages = turns("Student", "teacher", "documents", "caller")["messages"]
    with pytest.raises(DataError, match=r"the role 'Student' is none; data\.roles says .*Student: user"):
        messages_of("a", messages)
    roles = {"Student": "user", "Teacher": "assistant", "documents": "documents", "caller": "function_call"}
    found = messages_of("a", messages, roles)
    assert [(m.role, m.content, m.calls) for m in found] == [
        ("user", "x", ()),
        ("assistant", "x", ()),
        ("documents", "x", ()),
        ("assistant", "", ("x",)),
    ]
    assert pairs_of("a", messages[:1], roles) == found[:1]


def test_every_usual_name_of_a_role_is_known() -> None:
    names = {
        "user": ("human", "prompter"),
        "assistant": ("gpt", "chatgpt", "bing", "bard", "model", "ai", "bot", "chatbot", "function_call"),
        "tool": ("observation", "function_response", "function", "tool_response", "ipython"),
    }
    for role, others in names.items():
        assert {message.role for message in messages_of("a", turns(role, *others)["messages"])} == {role}


def test_an_answer_may_be_null_and_is_then_empty() -> None:
    assert messages_of("a", [{"role": "assistant", "content": None}]) == (Message(ASSISTANT, ""),)
    with pytest.raises(DataError, match="content of message 0 must be text, not null"):
        messages_of("a", [{"role": "user", "content": None}])


def test_a_call_may_be_written_in_the_older_way() -> None:
    old = {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": '{"a": null}'}}
    assert messages_of("a", [old]) == (Message(ASSISTANT, "", calls=('{"name": "f", "arguments": {"a": null}}',)),)
