"""Held-out rows as questions: to a server as text, to a model in training as token ids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trainer.data.messages import Conversation


@dataclass(frozen=True)
class Question:
    """What is sent, and the answer wanted.

    Exactly one of ``messages`` (the server renders them by the base's chat template) and ``prompt`` (text sent as it
    is) is set. ``row`` holds the columns as they were read, for metrics that need more than the ``reference``.
    """

    messages: Conversation | None
    prompt: str | None
    reference: str
    row: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TokenQuestion:
    """A validation row to be answered in training: token ids of the prompt, and the response wanted."""

    input_ids: tuple[int, ...]
    response: str
