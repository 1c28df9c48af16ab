"""What is kept for those who asked for it: responses, stored chat completions, conversations. As records."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class AnswerKind(StrEnum):
    """Which part of the API an answer is of."""

    RESPONSE = "response"
    CHAT = "chat.completion"
    CONVERSATION = "conversation"
    ITEM = "conversation.item"


class AnswerRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One answer. ``owner`` tells the holders of different keys apart; times are Unix seconds.

    ``previous`` is the id of what this one goes on from, if anything: a response, or a conversation, of which it
    answered the items up to number ``until``; of an item, it is that of its conversation.
    The others are JSON: ``metadata`` an object of texts, ``input`` the list that was answered, ``body`` what is told.
    """

    id: str
    kind: AnswerKind
    owner: str
    model: str
    created: float
    input: str
    body: str
    metadata: str = "{}"
    previous: str = ""
    until: int = 0
    expires: float | None = None
    number: int = 0  # in the order of creation; 0 until it is kept


def is_conversation(id: str) -> bool:
    """Whether that is the id of a conversation, not of a response."""
    return id.startswith("conv_")


class AnswerQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Which answers of an owner are asked for: those behind number ``after``, and up to ``until``."""

    kind: AnswerKind
    owner: str
    now: float
    limit: int
    after: int | None = None
    until: int | None = None
    ascending: bool = False
    model: str | None = None
    previous: str | None = None
    metadata: dict[str, str] = {}
