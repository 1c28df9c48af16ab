"""Rows of preference data, in the shapes people have them, to prompts and answers. Knows neither tokens nor templates.

Pairs: ``prompt``, ``chosen``, ``rejected`` as texts, messages or lists of messages; or a conversation (``messages``,
``conversations``) with ``chosen`` and ``rejected`` to follow it; or two whole conversations without a prompt.
Judgements: ``prompt``, ``completion`` and ``label``; or a conversation that ends with the answer, and ``label``.
Each row may have another of these shapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from trainer.config.data import DataConfig
from trainer.config.preference import PreferenceColumns
from trainer.data.conversations import DroppedRow, joined, missing_column, some_columns
from trainer.data.messages import (
    ASSISTANT,
    Conversation,
    Message,
    messages_of,
    named,
    spelled_usually,
    with_system,
    written_out,
)
from trainer.data.rows import RawRow
from trainer.errors import DataError

_PROMPTS = ("prompt", "instruction", "question")  # found without being named in data.columns, as are
_CONVERSATIONS = ("messages", "conversations")
_LABELS = {"true": True, "false": False, "1": True, "0": False}


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt, the first of them preferred."""

    prompt: Conversation
    chosen: Message
    rejected: Message


@dataclass(frozen=True)
class Judged:
    """One answer, judged good or bad."""

    prompt: Conversation
    completion: Message
    good: bool


class ComparisonReader:
    """Reads rows by the names of their columns."""

    def __init__(self, config: DataConfig, answers: PreferenceColumns) -> None:
        self._config, self._columns, self._answers = config, config.columns, answers

    def pair(self, row: RawRow) -> Pair:
        """The pair in ``row``. DataError for wrong columns and types. Raises DroppedRow."""
        names = self._answers
        chosen, rejected = (self._answer(row, name, _cell(row, name)) for name in (names.chosen, names.rejected))
        before = self._prompt(row)
        if before is None and len(chosen) == 1:
            raise _no_prompt(row)
        if chosen[:-1] != rejected[:-1]:
            raise DroppedRow("chosen and rejected differ before the last answer")
        if chosen[-1] == rejected[-1]:
            raise DroppedRow("chosen and rejected are the same")
        return Pair(self._with_system(row, (*(before or ()), *chosen[:-1])), chosen[-1], rejected[-1])

    def judged(self, row: RawRow) -> list[Judged]:
        """The judgement in ``row``, or the two in a pair. Errors as in ``pair``."""
        names = self._answers
        if names.label not in row.values and names.chosen in row.values and names.rejected in row.values:
            pair = self.pair(row)
            return [Judged(pair.prompt, pair.chosen, True), Judged(pair.prompt, pair.rejected, False)]
        good = _label(f"{row.where}: {names.label!r}", _cell(row, names.label))
        before = self._prompt(row)
        if before is None:
            raise _no_prompt(row)
        if names.completion in row.values:
            answer = self._answer(row, names.completion, row.values[names.completion])
            before, answer = (*before, *answer[:-1]), answer[-1:]
        elif before and before[-1].role == ASSISTANT:
            before, answer = before[:-1], before[-1:]
        else:
            raise DataError(
                f"{row.where} has no answer: neither a column {names.completion!r} nor an assistant's last message"
            )
        return [Judged(self._with_system(row, before), answer[0], good)]

    def prompt(self, row: RawRow) -> Conversation:
        """The prompt in ``row``, for answers that the model gives itself. An answer at its end is left out."""
        before = self._prompt(row)
        if before is None:
            raise _no_prompt(row)
        return self._with_system(row, before[:-1] if before and before[-1].role == ASSISTANT else before)

    def _prompt(self, row: RawRow) -> Conversation | None:
        name = self._columns.messages or self._columns.prompt
        name = name or next((name for name in (*_PROMPTS, *_CONVERSATIONS) if name in row.values), None)
        if name is None:
            return None
        value = _cell(row, name)
        if not isinstance(value, str):
            return self._messages(row, name, value)
        more = row.values.get("input") if name == "instruction" else None  # as in alpaca's data
        text = joined(value, more if isinstance(more, str) else None)
        return (Message("user", self._config.prompt_prefix + text),)

    def _with_system(self, row: RawRow, messages: Conversation) -> Conversation:
        text, column = self._config.system_prompt, self._columns.system
        if column:
            text = _cell(row, column)
            if not isinstance(text, str):
                raise DataError(f"{row.where}: {column!r} must be text")
        return with_system(messages, text if text and text.strip() else None)

    def _answer(self, row: RawRow, name: str, value: Any) -> Conversation:
        """The messages of an answer, the last of which is the assistant's."""
        if isinstance(value, str):
            return (Message(ASSISTANT, value),)
        messages = self._messages(row, name, [value] if isinstance(value, Mapping) else value)
        if not messages or messages[-1].role != ASSISTANT:
            raise DataError(f"{row.where}: {name!r} must end with a message of the assistant")
        return messages

    def _messages(self, row: RawRow, name: str, value: Any) -> Conversation:
        where = f"{row.where}: {name!r}"
        if not isinstance(value, list):
            raise DataError(f"{where} must be text, a message or a list of messages, not {named(value)}")
        # nothing is excluded from being learned here: answers are compared as they are
        value = spelled_usually(where, value, self._config.tags)
        messages = tuple(replace(message, learned=True) for message in messages_of(where, value))
        return written_out(messages, []) if self._config.tools == "text" else messages


def _label(where: str, value: Any) -> bool:
    if isinstance(value, bool):
        return value
    found = _LABELS.get(str(value).strip().lower())
    if found is None:
        raise DataError(f"{where} must be true or false, not {value!r}")
    return found


def _cell(row: RawRow, name: str) -> Any:
    if name not in row.values:
        raise missing_column(row, name, "preference.columns or data.columns")
    return row.values[name]


def _no_prompt(row: RawRow) -> DataError:
    found = some_columns(row.values)
    return DataError(f"{row.where} has no prompt (found: {found}); name its column in data.columns.prompt or .messages")
