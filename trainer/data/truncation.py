"""Prompts cut to a number of tokens, and still as the template writes them. Responses are cut by the encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from trainer.data.conversations import ASSISTANT, TEXT, Conversation, DroppedRow
from trainer.data.examples import Encoder
from trainer.data.rendering import Renderer


class PromptLimit:
    """Keeps what stands before the last answer within ``limit`` tokens, the template's own included.

    The oldest turns go first, then the end of the last message; what the template writes around it stays whole.
    """

    def __init__(self, renderer: Renderer, encoder: Encoder, limit: int) -> None:
        self._renderer, self._encoder, self._limit = renderer, encoder, limit

    def fit(self, conversation: Conversation, tools: Sequence[Any]) -> Conversation:
        """``conversation``, the same object where it fits. Raises DroppedRow where no text of the prompt would stay."""
        if conversation[0].role == TEXT:
            return conversation
        while True:
            last = max(i for i, message in enumerate(conversation) if message.role == ASSISTANT)
            prompt = self._renderer.prompt(conversation[:last], tools)
            over = len(self._encoder.prompt_ids(prompt)) - self._limit
            if over <= 0:
                return conversation
            shorter = _without_oldest_turn(conversation[:last]) or self._cut(conversation[:last], over)
            conversation = (*shorter, *conversation[last:])

    def _cut(self, before: Conversation, over: int) -> Conversation:
        """``before`` with the last message shorter by ``over`` tokens, or a little less."""
        content = before[-1].content
        ends = self._encoder.ends(content)
        kept = max(0, len(ends) - over)
        while kept and ends[kept - 1] >= len(content):
            kept -= 1  # several tokens of one character
        if not kept or not content[: ends[kept - 1]].strip():
            raise DroppedRow(f"nothing of the prompt's text fits into data.max_prompt_length {self._limit}")
        return (*before[:-1], replace(before[-1], content=content[: ends[kept - 1]]))


def _without_oldest_turn(before: Conversation) -> Conversation | None:
    """``before`` without its first question and the answers to it; None where there is only one question."""
    system = next((i for i, message in enumerate(before) if message.role != "system"), len(before))
    later = [i for i, message in enumerate(before) if i > system and message.role == "user"]
    return (*before[:system], *before[later[0] :]) if later else None
