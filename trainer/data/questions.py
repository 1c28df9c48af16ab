"""A held-out row as a question to a server. Knows neither tokens nor how the rows were split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trainer.data.conversations import Conversation


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
