"""Rows of preference data, in the shapes people have them, to one shape. Knows neither tokens nor templates.

Pairs: ``prompt``, ``chosen``, ``rejected`` as texts, messages or lists of messages; or a conversation (``messages``,
``conversations``) with ``chosen`` and ``rejected`` to follow it; or two whole conversations without a prompt.
Judgements: ``prompt``, ``completion`` and ``label``; or a conversation that ends with the answer, and ``label``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainer.config.data import Columns
from trainer.config.preference import PreferenceColumns
from trainer.data.conversations import DroppedRow
from trainer.data.messages import ASSISTANT, Conversation, Message, role_of
from trainer.errors import DataError

_PROMPTS = ("prompt", "instruction", "question")  # found without being named in data.columns, as are
_CONVERSATIONS = ("messages", "conversations")
_LABELS = {"true": True, "false": False, "1": True, "0": False}
_SHOWN_COLUMNS = 12


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt, the first of them preferred."""

    prompt: Conversation
    chosen: str
    rejected: str


@dataclass(frozen=True)
class Judged:
    """One answer, judged good or bad."""

    prompt: Conversation
    completion: str
    good: bool


class ComparisonReader:
    """Reads rows by the names of their columns. ``where`` begins its errors: file and line."""

    def __init__(
        self, columns: Columns, answers: PreferenceColumns, system_prompt: str | None, prompt_prefix: str
    ) -> None:
        self._columns, self._answers = columns, answers
        self._system_prompt, self._prompt_prefix = system_prompt, prompt_prefix

    def pair(self, where: str, row: Mapping[str, Any]) -> Pair:
        """The pair in ``row``. DataError for wrong columns and types. Raises DroppedRow."""
        names = self._answers
        chosen, rejected = (
            _answer(f"{where}: {name!r}", _get(where, row, name)) for name in (names.chosen, names.rejected)
        )
        before = self._prompt(where, row)
        if before is None and len(chosen) == 1:
            raise _no_prompt(where, row)
        if chosen[:-1] != rejected[:-1]:
            raise DroppedRow("chosen and rejected differ before the last answer")
        if chosen[-1].content == rejected[-1].content:
            raise DroppedRow("chosen and rejected are the same")
        prompt = self._with_system(where, row, (*(before or ()), *chosen[:-1]))
        return Pair(prompt, chosen[-1].content, rejected[-1].content)

    def judged(self, where: str, row: Mapping[str, Any]) -> list[Judged]:
        """The judgement in ``row``, or the two in a pair. Errors as in ``pair``."""
        names = self._answers
        if names.label not in row and names.chosen in row and names.rejected in row:
            pair = self.pair(where, row)
            return [Judged(pair.prompt, pair.chosen, True), Judged(pair.prompt, pair.rejected, False)]
        good = _label(f"{where}: {names.label!r}", _get(where, row, names.label))
        before = self._prompt(where, row)
        if before is None:
            raise _no_prompt(where, row)
        if names.completion in row:
            answer = _answer(f"{where}: {names.completion!r}", row[names.completion])
            before, answer = (*before, *answer[:-1]), answer[-1:]
        elif before and before[-1].role == ASSISTANT:
            before, answer = before[:-1], before[-1:]
        else:
            raise DataError(
                f"{where} has no answer: neither a column {names.completion!r} nor an assistant's last message"
            )
        return [Judged(self._with_system(where, row, before), answer[0].content, good)]

    def prompt(self, where: str, row: Mapping[str, Any]) -> Conversation:
        """The prompt in ``row``, for answers that the model gives itself. An answer at its end is left out."""
        before = self._prompt(where, row)
        if before is None:
            raise _no_prompt(where, row)
        return self._with_system(where, row, before[:-1] if before and before[-1].role == ASSISTANT else before)

    def _prompt(self, where: str, row: Mapping[str, Any]) -> Conversation | None:
        columns = self._columns
        named = [name for name in (columns.messages, columns.prompt) if name]
        if named:
            value, name = _get(where, row, named[0]), named[0]
        else:
            name = next((name for name in (*_PROMPTS, *_CONVERSATIONS) if name in row), "")
            if not name:
                return None
            value = row[name]
        if not isinstance(value, str):
            return _messages(f"{where}: {name!r}", value)
        more = row.get("input") if name == "instruction" else None  # as in alpaca's data
        text = f"{value}\n{more}" if isinstance(more, str) and more.strip() else value
        return (Message("user", self._prompt_prefix + text),)

    def _with_system(self, where: str, row: Mapping[str, Any], messages: Conversation) -> Conversation:
        text = self._system_prompt
        if self._columns.system:
            text = _get(where, row, self._columns.system)
            if not isinstance(text, str):
                raise DataError(f"{where}: {self._columns.system!r} must be text")
        if text and text.strip() and not (messages and messages[0].role == "system"):
            return (Message("system", text), *messages)
        return messages


def _answer(where: str, value: Any) -> Conversation:
    """The messages of an answer, the last of which is the assistant's."""
    if isinstance(value, str):
        return (Message(ASSISTANT, value),)
    messages = _messages(where, [value] if isinstance(value, Mapping) else value)
    if not messages or messages[-1].role != ASSISTANT:
        raise DataError(f"{where} must end with a message of the assistant")
    return messages


def _messages(where: str, value: Any) -> Conversation:
    if not isinstance(value, list):
        raise DataError(f"{where} must be text, a message or a list of messages, not {type(value).__name__}")
    return tuple(_message(f"{where}: message {i}", item) for i, item in enumerate(value))


def _message(where: str, item: Any) -> Message:
    if isinstance(item, Mapping):
        for role, content in (("role", "content"), ("from", "value")):
            who, text = item.get(role), item.get(content)
            if isinstance(who, str) and isinstance(text, str):
                return Message(role_of(where, who), text)
    raise DataError(f"{where} must have texts under role and content, or from and value")


def _label(where: str, value: Any) -> bool:
    if isinstance(value, bool):
        return value
    found = _LABELS.get(str(value).strip().lower())
    if found is None:
        raise DataError(f"{where} must be true or false, not {value!r}")
    return found


def _get(where: str, row: Mapping[str, Any], name: str) -> Any:
    if name not in row:
        raise DataError(
            f"{where} has no column {name!r} (found: {_found(row)}); name yours in preference.columns or data.columns"
        )
    return row[name]


def _no_prompt(where: str, row: Mapping[str, Any]) -> DataError:
    return DataError(
        f"{where} has no prompt (found: {_found(row)}); name its column in data.columns.prompt or .messages"
    )


def _found(row: Mapping[str, Any]) -> str:
    return ", ".join(list(row)[:_SHOWN_COLUMNS]) or "none"
