"""Rows to conversations, by the layout of their columns. Knows neither tokens nor templates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trainer.config.data import DataConfig
from trainer.data.messages import ASSISTANT, Conversation, Message, messages_of, named, pairs_of
from trainer.data.rows import RawRow
from trainer.data.shapes import Layout
from trainer.data.tools import tools_of, written_out
from trainer.errors import DataError

__all__ = [
    "ASSISTANT", "TEXT", "Conversation", "DroppedRow", "Message", "Reading", "answers_of", "read_row", "require_answer",
]  # fmt: skip

TEXT = "text"  # the role of the one message of a row that is text only


class DroppedRow(Exception):  # noqa: N818  (not an error: it is counted)
    """A row that cannot be used; the message is the reason under which it is counted."""


@dataclass(frozen=True)
class Reading:
    """A row as read. ``tools`` are left for the template to write, where the configuration wants that."""

    conversation: Conversation
    tools: tuple[Any, ...] = ()


def read_row(row: RawRow, layout: Layout, config: DataConfig) -> Reading:
    """What stands in ``row``. Raises DataError for wrong columns and types, DroppedRow for what teaches nothing."""
    layout.check(row)
    cells = _Cells(row, layout)
    if layout.shape == "text":
        text = cells.text("text")
        _require_text(text, "empty text")
        return Reading((Message(TEXT, text),))
    messages = messages_of(cells.where("messages"), cells.required("messages")) if "messages" in layout.columns else ()
    messages = messages or _turns(cells, config)
    system = cells.optional("system") or config.system_prompt
    if system and messages and messages[0].role != "system":
        messages = (Message("system", system), *messages)
    tools = tools_of(cells.where("tools"), cells.get("tools"))
    if config.tools == "text":
        messages, tools = written_out(messages, tools), []
    require_answer(messages, config)
    return Reading(messages, tuple(tools))


def answers_of(conversation: Sequence[Message], config: DataConfig) -> list[int]:
    """Indices of the messages to be learned: those of the assistant that ``data.learn`` and they themselves allow."""
    answers = [i for i, message in enumerate(conversation) if message.role == ASSISTANT and i > 0]
    if config.learn == "last_answer":
        answers = answers[-1:]
    return [i for i in answers if conversation[i].learned]


def _turns(cells: _Cells, config: DataConfig) -> Conversation:
    if "messages" in cells.columns:
        return ()
    prompt = cells.text("prompt")
    if more := cells.optional("input"):
        prompt = f"{prompt}\n{more}" if prompt.strip() else more
    _require_text(prompt, "empty prompt")
    history = pairs_of(cells.where("history"), cells.get("history")) if "history" in cells.columns else ()
    return (*history, Message("user", config.prompt_prefix + prompt), Message(ASSISTANT, cells.text("response")))


def require_answer(conversation: Conversation, config: DataConfig) -> None:
    """Raise DroppedRow where there is nothing to learn."""
    answers = [i for i, message in enumerate(conversation) if message.role == ASSISTANT and i > 0]
    if not answers:
        raise DroppedRow("no assistant message after a first message")
    if all(message.role == "system" for message in conversation[: answers[-1]]):
        raise DroppedRow("no message before the answer")
    last = conversation[answers[-1]]
    _require_text(last.content + "".join(last.calls), "empty response")
    _require_text(conversation[answers[0] - 1].content, "empty prompt")
    if not answers_of(conversation, config) and config.learn != "everything":
        raise DroppedRow("every answer is excluded by its weight or train")


def _require_text(text: str, reason: str) -> None:
    if not text.strip():
        raise DroppedRow(reason)


class _Cells:
    """The cells of one row by their roles."""

    def __init__(self, row: RawRow, layout: Layout) -> None:
        self.row, self.columns = row, layout.columns

    def where(self, role: str) -> str:
        """How errors about this cell begin."""
        return f"{self.row.where}: {self.columns.get(role, role)!r}"

    def get(self, role: str) -> Any:
        """The cell as it is, None where there is none."""
        return self.row.values.get(self.columns.get(role, ""))

    def required(self, role: str) -> Any:
        """The cell as it is. Raises DroppedRow where it is null."""
        value = self.get(role)
        if value is None:
            raise DroppedRow(f"{self.columns[role]!r} is null")
        return value

    def text(self, role: str) -> str:
        """The text in the cell. Raises DataError, or DroppedRow where it is null."""
        value = self.required(role)
        if not isinstance(value, str):
            raise DataError(f"{self.where(role)} must be text, not {named(value)}")
        return value

    def optional(self, role: str) -> str | None:
        """The text in the cell, None where there is none but white space."""
        value = self.get(role)
        if value is None:
            return None
        text = self.text(role)
        return text if text.strip() else None
