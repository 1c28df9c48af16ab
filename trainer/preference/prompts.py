"""One prompt out of what a row says of it twice: in a column of its own, and at the beginning of its answers.

Most public sets of preferences hold whole conversations beside the question that these begin with.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from trainer.data.messages import ASSISTANT, Conversation, Message, from_json
from trainer.errors import DataError

_SYSTEM = ("system", "developer")
_CONTENTS = ("content", "tool_calls", "function_call")
_PYTHON_LIST = re.compile(r"\s*\[\s*\{'(role|from|content|value)': ")
_SPEAKER = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
_SPEAKERS = {"Human": "user", "Assistant": ASSISTANT}


def whole_prompt(before: Conversation, chat: Conversation, prefix: str) -> Conversation | None:
    """What ``before`` and ``chat`` say together, each message once; None where they contradict each other.

    ``chat`` is what an answer brings along: the whole conversation, its last turns, or turns to follow ``before``.
    ``prefix`` may stand before a text of ``before``. Equal texts may differ in their white space.
    """
    system, turns = _split(before)
    other, more = _split(chat)
    if system and other and not same_messages(system, other, prefix):
        return None
    joined = _joined(turns, more, prefix)
    return None if joined is None else (*(system or other), *joined)


def _joined(turns: Conversation, more: Conversation, prefix: str) -> Conversation | None:
    if not turns or not more:
        return turns or more
    length = len(turns)
    for at in range(len(more) - length + 1):
        if same_messages(turns, more[at : at + length], prefix):
            return (*more[:at], *turns, *more[at + length :])
    for shared in range(min(length, len(more)), 0, -1):
        if same_messages(turns[-shared:], more[:shared], prefix):
            return (*turns, *more[shared:])
    if turns[-1].role == ASSISTANT and same_messages(turns[:-1], more, prefix):
        return more  # a conversation with an answer of its own
    follows = more[0].role != "user" or turns[-1].role == ASSISTANT
    return (*turns, *more) if follows else None


def _split(conversation: Conversation) -> tuple[Conversation, Conversation]:
    """Its system messages, and what follows them."""
    count = next((i for i, message in enumerate(conversation) if message.role not in _SYSTEM), len(conversation))
    return conversation[:count], conversation[count:]


def same_messages(some: Sequence[Message], others: Sequence[Message], prefix: str = "") -> bool:
    """Whether both say the same, but for white space and a ``prefix`` before a text."""
    return [_key(message, prefix) for message in some] == [_key(message, prefix) for message in others]


def _key(message: Message, prefix: str) -> tuple[str, list[str], tuple[str, ...]]:
    return message.role, message.content.removeprefix(prefix).split(), message.calls


def as_chat(where: str, value: Any, *, dialogues: bool) -> Any:
    """``value``, or the message or messages that it is as text: JSON, as cells of CSV hold it; or a dialogue.

    A dialogue is text of ``Human:`` and ``Assistant:`` in turn, as in Anthropic's published preferences. Raises
    DataError for a list as Python prints it.
    """
    if not isinstance(value, str):
        return value
    if value.lstrip()[:1] in ("[", "{"):
        try:
            parsed = json.loads(value)
        except (RecursionError, ValueError):
            if _PYTHON_LIST.match(value):
                raise DataError(f"{where} is a list of messages as Python prints it; write it as JSON") from None
            return value
        items = parsed if isinstance(parsed, list) else [parsed]
        if not items or not all(map(_is_message, items)):
            return value
        return from_json(where, value)
    return _dialogue(value) if dialogues and value.lstrip().startswith("Human:") else value


def _is_message(item: Any) -> bool:
    if not isinstance(item, dict):
        return False
    return ("role" in item and any(key in item for key in _CONTENTS)) or ("from" in item and "value" in item)


def _dialogue(text: str) -> list[dict[str, str]] | str:
    first, *parts = _SPEAKER.split(text)
    turns = [
        {"role": _SPEAKERS[who], "content": said.strip()} for who, said in zip(parts[::2], parts[1::2], strict=True)
    ]
    return text if first or len(turns) < 2 else turns
