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

    ``previous`` is the id of the answer that this one goes on from, if any; of an item, that of its conversation.
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
    expires: float | None = None
    number: int = 0  # in the order of creation; 0 until it is kept


class AnswerQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Which answers of an owner are asked for. ``after`` is the number of the last one that was seen."""

    kind: AnswerKind
    owner: str
    now: float
    limit: int
    after: int | None = None
    ascending: bool = False
    model: str | None = None
    previous: str | None = None
    metadata: dict[str, str] = {}
