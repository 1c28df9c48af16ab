"""Conversations to segments of text, each to be learned or only to be read.

What is learned is found by rendering prefixes of the conversation, never by looking for a template's keywords: the
prompt of an answer is exactly what a server renders for the messages before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from jinja2 import TemplateError

from trainer.data.conversations import ASSISTANT, Conversation, Message
from trainer.errors import DataError


@dataclass(frozen=True)
class Segment:
    """A stretch of text. ``special`` lets the tokenizer add what begins a text, as for a plain prompt."""

    text: str
    learned: bool
    special: bool = False


class DroppedRow(Exception):  # noqa: N818  (not an error: it is counted)
    """A row that cannot be used; the message is the reason under which it is counted."""


class Renderer(Protocol):
    """Turns conversations into segments, and prompts into what stands before an answer."""

    def segments(self, conversation: Conversation) -> list[Segment]:
        """The segments of ``conversation``, the last of them learned. Raises DroppedRow."""
        ...

    def prompt(self, messages: Sequence[Message]) -> Segment:
        """What stands before the assistant's answer to ``messages``."""
        ...


class PlainRenderer:
    """Prompt and response as they are, for ``/v1/completions``."""

    def segments(self, conversation: Conversation) -> list[Segment]:
        """See Renderer."""
        *before, answer = conversation
        _require_text(before[-1].content, "empty prompt")
        _require_text(answer.content, "empty response")
        return [self.prompt(before), Segment(answer.content, learned=True)]

    def prompt(self, messages: Sequence[Message]) -> Segment:
        """See Renderer."""
        return Segment(messages[-1].content, learned=False, special=True)


class ChatRenderer:
    """Conversations by the base's chat template, for ``/v1/chat/completions``."""

    def __init__(self, tokenizer: Any) -> None:
        """Raises DataError for a tokenizer without a template."""
        if not tokenizer.chat_template:
            raise DataError("the base has no chat template; set data.template: none and put all text into the prompt")
        self._tokenizer = tokenizer

    def segments(self, conversation: Conversation) -> list[Segment]:
        """See Renderer. A template that rewrites earlier turns leaves only the last answer to be learned."""
        answers = [i for i, message in enumerate(conversation) if message.role == ASSISTANT and i > 0]
        if not answers:
            raise DroppedRow("no assistant message after a first message")
        if all(message.role == "system" for message in conversation[: answers[-1]]):
            raise DroppedRow("no message before the answer")
        _require_text(conversation[answers[-1]].content, "empty response")
        _require_text(conversation[answers[0] - 1].content, "empty prompt")
        try:
            return self._split(conversation, answers)
        except _RewrittenError:
            pass
        try:
            return self._split(conversation, answers[-1:])
        except _RewrittenError:
            raise DroppedRow("the chat template does not keep the prompt in front of the answer") from None

    def prompt(self, messages: Sequence[Message]) -> Segment:
        """See Renderer."""
        return Segment(self._render(messages, add_generation_prompt=True), learned=False)

    def _split(self, conversation: Conversation, answers: Sequence[int]) -> list[Segment]:
        out: list[Segment] = []
        done = ""
        for i in answers:
            before = self._render(conversation[:i], add_generation_prompt=True)
            after = self._render(conversation[: i + 1], add_generation_prompt=False)
            if not before.startswith(done) or not after.startswith(before):
                raise _RewrittenError
            out += [Segment(before[len(done) :], learned=False), Segment(after[len(before) :], learned=True)]
            done = after
        return out

    def _render(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        plain = [{"role": message.role, "content": message.content} for message in messages]
        try:
            return str(
                self._tokenizer.apply_chat_template(plain, add_generation_prompt=add_generation_prompt, tokenize=False)
            )
        except TemplateError as error:
            raise DroppedRow(f"the chat template refuses it: {error.message}") from error


class _RewrittenError(Exception):
    """A longer conversation does not begin with the rendering of its own beginning."""


def _require_text(text: str, reason: str) -> None:
    if not text.strip():
        raise DroppedRow(reason)
