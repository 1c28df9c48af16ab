"""The typed pieces of an assistant's message, and what makes them of an output's text while it comes.

Every dialect of the API writes its answers of these. Knows no requests and no dialect.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

import msgspec
from typing_extensions import override


class ReasoningDelta(msgspec.Struct, frozen=True, gc=False):
    """More of what is thought before the answer."""

    text: str


class ContentDelta(msgspec.Struct, frozen=True, gc=False):
    """More of the answer's text."""

    text: str


class ToolCallBegin(msgspec.Struct, frozen=True, gc=False):
    """A call of the tool ``name`` begins. Calls of a message come one after the other, numbered by ``index``."""

    index: int
    id: str
    name: str


class ToolCallDelta(msgspec.Struct, frozen=True, gc=False):
    """More of a call's arguments, which joined are JSON, unless the output was cut or the model wrote none."""

    index: int
    arguments: str


Part = ReasoningDelta | ContentDelta | ToolCallBegin | ToolCallDelta


class MessageParser(Protocol):
    """Takes one output apart; made for one sequence. However a text is cut into pieces, the parts of all come to the
    same.

    ``thought_chars``: how much of the text so far is thought, marks included; it comes first in an output. While
    ``thinking`` there may be more of it.
    """

    thought_chars: int
    thinking: bool

    def feed(self, text: str) -> list[Part]:
        """What is certain now that ``text`` has come."""
        ...

    def finish(self) -> list[Part]:
        """What was held back, at the end of the output."""
        ...


class PlainParser(MessageParser):
    """All is content."""

    thought_chars, thinking = 0, False

    @override
    def feed(self, text: str) -> list[Part]:
        return [ContentDelta(text)] if text else []

    @override
    def finish(self) -> list[Part]:
        return []


@dataclass
class ToolCall:
    """One call of a message."""

    id: str
    name: str
    arguments: str = ""


@dataclass
class AssistantMessage:
    """Parts put together."""

    content: str = ""
    reasoning: str = ""
    calls: list[ToolCall] = field(default_factory=list)

    def add(self, parts: Iterable[Part]) -> None:
        """Append ``parts``, in the order in which they came."""
        for part in parts:
            if isinstance(part, ContentDelta):
                self.content += part.text
            elif isinstance(part, ReasoningDelta):
                self.reasoning += part.text
            elif isinstance(part, ToolCallBegin):
                self.calls.append(ToolCall(part.id, part.name))
            else:
                self.calls[part.index].arguments += part.arguments
