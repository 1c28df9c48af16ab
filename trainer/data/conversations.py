"""Rows to conversations, by the configured columns. Knows neither tokens nor templates."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.config.data import Columns, DataConfig
from trainer.data.rows import RawRow
from trainer.errors import DataError

ASSISTANT = "assistant"
_TYPE_NAMES = {"int": "a number", "float": "a number", "bool": "true/false", "list": "a list", "dict": "an object"}


@dataclass(frozen=True)
class Message:
    """One message of a conversation."""

    role: str
    content: str


Conversation = tuple[Message, ...]


def needed_columns(columns: Columns) -> list[str]:
    """The columns that every row must have."""
    if columns.messages:
        return [columns.messages]
    return [columns.prompt, columns.response, *([columns.system] if columns.system else [])]


def conversation_of(path: Path, row: RawRow, config: DataConfig) -> Conversation:
    """The conversation in ``row``: what the assistant says in it is to be learned. DataError for wrong types."""
    columns = config.columns
    if columns.messages:
        messages = _messages(f"{path} line {row.line}: {columns.messages!r}", row.values[columns.messages])
    else:
        prompt = _text(path, row, columns.prompt)
        messages = (Message("user", prompt), Message(ASSISTANT, _text(path, row, columns.response)))
        if columns.system and (system := _text(path, row, columns.system)).strip():
            messages = (Message("system", system), *messages)
    if config.system_prompt and messages and messages[0].role != "system":
        messages = (Message("system", config.system_prompt), *messages)
    return messages


def _text(path: Path, row: RawRow, column: str) -> str:
    value = row.values[column]
    if not isinstance(value, str):
        raise DataError(f"{path} line {row.line}: {column!r} must be text, not {_named(value)}")
    return value


def _messages(where: str, value: Any) -> Conversation:
    if not isinstance(value, list):
        raise DataError(f"{where} must be a list of messages, not {_named(value)}")
    out = []
    for i, item in enumerate(value):
        if not isinstance(item, dict):
            raise DataError(f"{where}: message {i} must be an object with role and content, not {_named(item)}")
        for key in ("role", "content"):
            if not isinstance(item.get(key), str):
                raise DataError(f"{where}: {key} of message {i} must be text, not {_named(item.get(key))}")
        out.append(Message(item["role"], item["content"]))
    return tuple(out)


def _named(value: object) -> str:
    return "null" if value is None else _TYPE_NAMES.get(type(value).__name__, type(value).__name__)
