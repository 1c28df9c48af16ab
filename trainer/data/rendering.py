"""Conversations to segments of text, each to be learned or only to be read.

What is learned is found by rendering prefixes of the conversation, never by looking for a template's keywords: the
prompt of an answer is exactly what a server renders for the messages before it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from jinja2 import TemplateError

from trainer.config.data import DataConfig
from trainer.data.conversations import TEXT, DroppedRow, answers_of, require_answer
from trainer.data.messages import ASSISTANT, Conversation, Message
from trainer.data.templates import template_text
from trainer.errors import DataError

_ASKED, _ANSWERED = "What is it?", "Probe answer."


@dataclass(frozen=True)
class Segment:
    """A stretch of text. Of a ``learned`` one the part up to the token that ends the turn is learned, or all of it
    where it is ``whole``. ``special`` lets the tokenizer add what begins a text, as for a plain prompt. ``answer``
    tells what the assistant says from what it is asked.
    """

    text: str
    learned: bool
    special: bool = False
    whole: bool = False
    answer: bool = False


class Renderer(Protocol):
    """Turns rows into segments, and prompts into what stands before an answer. ``tail`` is what it writes after one."""

    tail: str

    def segments(self, conversation: Conversation, tools: Sequence[Any] = ()) -> list[Segment]:
        """The segments of a row, up to the last message of the assistant. Raises DroppedRow."""
        ...

    def prompt(self, messages: Sequence[Message], tools: Sequence[Any] = ()) -> Segment:
        """What stands before the assistant's answer to ``messages``."""
        ...


def make_renderer(config: DataConfig, tokenizer: Any) -> Renderer:
    """The renderer that ``config`` asks for. Raises DataError when the base has no chat template."""
    text = template_text(config, tokenizer)
    return PlainRenderer(config) if text is None else ChatRenderer(config, tokenizer, text)


class PlainRenderer:
    """Prompt and response as they are, for ``/v1/completions``."""

    def __init__(self, config: DataConfig) -> None:
        self._config = config
        self.tail = ""

    def segments(self, conversation: Conversation, tools: Sequence[Any] = ()) -> list[Segment]:
        """See Renderer."""
        if conversation[0].role == TEXT:
            return text_segments(conversation)
        require_answer(conversation, self._config)
        if len(conversation) != 2 or tools:
            raise DataError(
                "data.template: none joins one prompt and one response; these rows have system messages, history, "
                "turns or tools: use data.template: chat or a named one"
            )
        asked, answer = conversation
        everything = self._config.learn == "everything"
        return [
            Segment(asked.content, everything, special=True, whole=everything),
            Segment(answer.content, learned=True, whole=everything, answer=True),
        ]

    def prompt(self, messages: Sequence[Message], _tools: Sequence[Any] = ()) -> Segment:
        """See Renderer."""
        return Segment(messages[-1].content, learned=False, special=True)


class ChatRenderer:
    """Conversations by a chat template, for ``/v1/chat/completions``."""

    def __init__(self, config: DataConfig, tokenizer: Any, template: str) -> None:
        """Raises DataError for a template that cannot be asked for an answer, or knows no tools where it must."""
        self._config, self._tokenizer, self._template = config, tokenizer, template
        if config.tools == "template" and "tool_calls" not in template:
            raise DataError("data.tools: the chat template writes no tool calls; set data.tools: text")
        self.tail = self._probe()

    def segments(self, conversation: Conversation, tools: Sequence[Any] = ()) -> list[Segment]:
        """See Renderer. A template that rewrites earlier turns leaves only the last answer to be learned."""
        if conversation[0].role == TEXT:
            return text_segments(conversation)
        require_answer(conversation, self._config)
        answers = [i for i, message in enumerate(conversation) if message.role == ASSISTANT and i > 0]
        for turns in (answers, answers[-1:]):
            try:
                return self._split(conversation, tools, turns)
            except _RewrittenError:
                continue
        raise DroppedRow("the chat template does not keep the prompt in front of the answer")

    def prompt(self, messages: Sequence[Message], tools: Sequence[Any] = ()) -> Segment:
        """See Renderer."""
        return Segment(self._render(messages, tools, add_generation_prompt=True), learned=False)

    def _split(self, conversation: Conversation, tools: Sequence[Any], answers: Sequence[int]) -> list[Segment]:
        out: list[Segment] = []
        done = ""
        everything = self._config.learn == "everything"
        wanted = answers_of(conversation, self._config)
        for i in answers:
            before = self._render(conversation[:i], tools, add_generation_prompt=True)
            after = self._render(conversation[: i + 1], tools, add_generation_prompt=False)
            if not before.startswith(done) or not after.startswith(before):
                raise _RewrittenError
            out += [
                Segment(before[len(done) :], everything, whole=everything),
                Segment(after[len(before) :], i in wanted, whole=everything, answer=True),
            ]
            done = after
        while out and not out[-1].learned:
            out.pop()  # nothing after the last thing learned is read
        if not out:
            raise DroppedRow("every answer that the chat template keeps is excluded by its weight or train")
        return out

    def _render(self, messages: Sequence[Message], tools: Sequence[Any], *, add_generation_prompt: bool) -> str:
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    [_plain(message) for message in messages],
                    tools=list(tools) or None,
                    chat_template=self._template,
                    add_generation_prompt=add_generation_prompt,
                    tokenize=False,
                )
            )
        except TemplateError as error:
            raise DroppedRow(f"the chat template refuses it: {error.message}") from error
        except (TypeError, ValueError, LookupError, ArithmeticError) as error:
            raise DroppedRow("the chat template cannot render it") from error

    def _probe(self) -> str:
        """What the template writes after an answer. DataError where the answer's own header is left to be learned.

        Without a generation prompt a server would not write that header, and the model would say it aloud.
        """
        messages = (Message("user", _ASKED), Message(ASSISTANT, _ANSWERED))
        try:
            before = self._render(messages[:1], (), add_generation_prompt=True)
            without = self._render(messages[:1], (), add_generation_prompt=False)
            after = self._render(messages, (), add_generation_prompt=False)
        except DroppedRow:
            return ""  # it wants other messages than these; rows will show
        if not after.startswith(before):
            return ""
        header, found, tail = after[len(before) :].partition(_ANSWERED)
        if not found:
            return ""
        if header.strip() and before == without:
            raise DataError(
                f"the chat template has no generation prompt: it writes {header.strip()!r} before an answer but not at "
                "the end of a prompt; give data.template one with {% if add_generation_prompt %}"
            )
        return tail


def text_segments(conversation: Conversation) -> list[Segment]:
    """The one segment of a row that is text only: plain language modelling."""
    return [Segment(conversation[0].content, learned=True, special=True, whole=True)]


def _plain(message: Message) -> dict[str, Any]:
    plain: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.calls:
        plain["tool_calls"] = [{"type": "function", "function": json.loads(call)} for call in message.calls]
    return plain


class _RewrittenError(Exception):
    """A longer conversation does not begin with the rendering of its own beginning."""
