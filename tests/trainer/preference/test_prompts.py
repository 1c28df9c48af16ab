"""What a prompt and the beginning of an answer say together. Whole rows: test_comparisons.py."""

from __future__ import annotations

import pytest

from trainer.data.messages import Message
from trainer.preference.prompts import as_chat, same_messages, whole_prompt

SYSTEM, U1, A1, U2, A2, U3 = (
    Message(role, text)
    for role, text in (
        ("system", "s"), ("user", "one"), ("assistant", "a"), ("user", "two"), ("assistant", "b"), ("user", "three"),
    )
)  # fmt: skip


@pytest.mark.parametrize(
    ("before", "chat", "expected"),
    [
        ((U1,), (), (U1,)),
        ((), (U1,), (U1,)),
        ((U1,), (U1, A1, U2), (U1, A1, U2)),
        ((U2,), (U1, A1, U2, A2, U3), (U1, A1, U2, A2, U3)),
        ((U1, A1, U2), (U2, A2, U3), (U1, A1, U2, A2, U3)),
        ((U1, A1, U2), (A1, U2), (U1, A1, U2)),
        ((U1, A1), (U2,), (U1, A1, U2)),
        ((U1,), (A1, U2), (U1, A1, U2)),
        ((U1, A1, U2, A2), (U1, A1, U2), (U1, A1, U2)),
        ((SYSTEM,), (U1,), (SYSTEM, U1)),
        ((SYSTEM, U1), (SYSTEM, U1, A1, U2), (SYSTEM, U1, A1, U2)),
        ((U1,), (U2,), None),
        ((U1, A1, U2), (U1, A2, U2, A2, U3), None),
        ((SYSTEM, U1), (Message("system", "t"), U1), None),
    ],
)
def test_each_message_is_there_once(
    before: tuple[Message, ...], chat: tuple[Message, ...], expected: tuple[Message, ...] | None
) -> None:
    assert whole_prompt(before, chat, "") == expected


def test_white_space_and_a_prefix_make_no_difference() -> None:
    spaced = Message("user", "> one \n")
    assert whole_prompt((spaced,), (U1, A1, U2), "> ") == (spaced, A1, U2)
    assert same_messages((Message("user", "a  b"),), (Message("user", "a\nb "),))
    assert not same_messages((U1,), (Message("assistant", "one"),))


def test_only_text_that_is_messages_is_read_as_such() -> None:
    for value in (None, 3, ["x"], "plain", "{}", "[[]]", '{"from": "x"}', "Human: hi"):
        assert as_chat("a", value, dialogues=True) is value
    assert as_chat("a", ' {"from": "gpt", "value": "x"}', dialogues=True) == {"from": "gpt", "value": "x"}
    text = "Human: hi\n\nAssistant: yes"
    assert as_chat("a", text, dialogues=False) is text
    assert as_chat("a", text, dialogues=True) == [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yes"},
    ]
