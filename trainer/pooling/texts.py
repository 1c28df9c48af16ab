"""Rows to texts and what is wanted of them: a class, several, a number, or texts that belong together.

A text is a string, which a server is sent as ``input``, or a conversation, sent as ``messages``. Knows no tokens.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from trainer.config.data import DataConfig
from trainer.config.task import (
    ClassificationTask,
    EmbeddingTask,
    PairColumns,
    ReadingTask,
    TargetColumns,
    TokenClassificationTask,
)
from trainer.data.conversations import DroppedRow, missing_column, some_columns
from trainer.data.messages import Conversation, from_json, messages_of, named, spelled_usually, with_system
from trainer.data.rows import RawRow
from trainer.errors import DataError
from trainer.pooling.labels import label_name

Text = str | Conversation
Target = tuple[str, ...] | float | None

TEXTS = ("text", "prompt", "sentence", "content", "utterance", "question", "query", "input")
_CHATS = ("messages", "conversations")
_PAIRS = (
    *(("text", "text_pair"), ("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2")),
    *(("query", "document"), ("query", "passage")),
)
_LABELS = ("label", "labels", "category", "intent", "emotion", "class", "target", "response")
_NUMBERS = ("score", "label", "rating", "target", "value", "similarity")
_ANCHORS = ("anchor", "query", "question", "sentence1", "text")
_POSITIVES = ("positive", "document", "passage", "answer", "sentence2", "text_pair", "response")
_NEGATIVES = ("negatives", "negative")
_SCORES = ("score", "similarity", "label")


@dataclass(frozen=True)
class TextRow:
    """One row. ``texts`` are one, or two of a pair; for vectors the anchor, what belongs to it, and what does not.

    ``target`` are the names of classes, a number, or None where the texts say it all. With ``words``, which say where
    the words of the text begin and end, it is the tag of each; ``inexact`` spans end within a word.
    """

    texts: tuple[Text, ...]
    target: Target = None
    words: tuple[tuple[int, int], ...] = ()
    inexact: int = 0


@dataclass
class TextLayout:
    """Which columns hold what: the same in all rows of a source."""

    texts: tuple[str, ...]
    target: str | None = None
    negatives: str | None = None
    is_chat: bool = False
    is_words: bool = False

    def __str__(self) -> str:
        names = [*self.texts, *filter(None, (self.negatives, self.target))]
        return f"({', '.join(names)})"


@dataclass
class TextReader:
    """Reads the rows of one source, all of which have the columns of its first row.

    ``labels`` counts the names of classes as they were read; ``several`` is whether a row has any number of them.
    """

    config: DataConfig
    task: ReadingTask
    labels: Counter[str] = field(default_factory=Counter)
    several: bool | None = None
    layout: TextLayout | None = None

    def read(self, row: RawRow) -> TextRow:
        """What stands in ``row``. Raises DataError for wrong columns and types, DroppedRow for what teaches nothing."""
        if self.layout is None:
            self.layout = find_layout(self.config, self.task, row)
        for column in (*self.layout.texts, *filter(None, (self.layout.target,))):
            if column not in row.values:
                raise missing_column(row, column, "task.columns or data.columns")
        texts = tuple(self._text(row, column) for column in self.layout.texts)
        if isinstance(self.task, EmbeddingTask) and self.layout.negatives:
            texts = (*texts, *self._negatives(row, self.layout.negatives))
        return TextRow(texts, self._target(row))

    def key(self, row: TextRow) -> bytes:
        """Bytes that are equal for equal rows."""
        return msgspec.msgpack.encode(row)

    def _text(self, row: RawRow, column: str) -> Text:
        value, where = row.values[column], f"{row.where}: {column!r}"
        if value is None:
            raise DroppedRow(f"{column!r} is null")
        if not (self.layout and self.layout.is_chat):
            return self._string(where, value)
        messages = messages_of(where, spelled_usually(where, value, self.config.tags), self.config.roles)
        if not any(message.content.strip() for message in messages):
            raise DroppedRow("empty text")
        return with_system(messages, self.config.system_prompt)

    def _string(self, where: str, value: Any) -> str:
        if not isinstance(value, str):
            raise DataError(f"{where} must be text, not {named(value)}")
        if not value.strip():
            raise DroppedRow("empty text")
        return self.config.prompt_prefix + value

    def _negatives(self, row: RawRow, column: str) -> Iterable[str]:
        value, where = row.values.get(column), f"{row.where}: {column!r}"
        found = from_json(where, value) if isinstance(value, str) and value.lstrip().startswith("[") else value
        listed = [] if found is None else found if isinstance(found, list) else [found]
        return [self._string(where, one) for one in listed]

    def _target(self, row: RawRow) -> Target:
        assert self.layout is not None
        column = self.layout.target
        if column is None:
            return None
        value, where = row.values[column], f"{row.where}: {column!r}"
        if value is None:
            raise DroppedRow(f"{column!r} is null")
        if not isinstance(self.task, ClassificationTask):
            return _number(where, value, most=1.0 if isinstance(self.task, EmbeddingTask) else math.inf)
        names = self._names(where, value, self.task)
        self.labels.update(names)
        return names

    def _names(self, where: str, value: Any, task: ClassificationTask) -> tuple[str, ...]:
        if self.several is None:
            self.several = isinstance(_listed(where, value), list) if task.multi_label is None else task.multi_label
        values = _listed(where, value) if self.several else value
        if self.several and not isinstance(values, list):
            values = [values]
        if not self.several and isinstance(values, list):
            raise DataError(f"{where} is a list: set task.multi_label to true, or give one label")
        names = [label_name(where, one, task.labels) for one in (values if isinstance(values, list) else [values])]
        return tuple(dict.fromkeys(names))


def _listed(where: str, value: Any) -> Any:
    """``value``, a list where it is one's JSON text."""
    return from_json(where, value) if isinstance(value, str) and value.lstrip().startswith("[") else value


def _number(where: str, value: Any, *, most: float) -> float:
    try:
        number = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else math.nan
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{where} must be a finite number, not {value!r}")
    if abs(number) > most:
        raise DataError(f"{where} is {number:g}, and the cosine of two texts goes from -{most:g} to {most:g}")
    return number


def find_layout(config: DataConfig, task: ReadingTask, row: RawRow) -> TextLayout:
    """The columns of rows like ``row``, by the configuration and then by their usual names. Raises DataError."""
    if config.recipe and isinstance(task, ClassificationTask) and not task.columns.label and "text" in row.values:
        return TextLayout(("text",), "response")  # beside it, labels are the names of all classes
    if isinstance(task, EmbeddingTask):
        return _pair_layout(task.columns, row)
    assert not isinstance(task, TokenClassificationTask), "its rows have a reader of their own"
    texts, is_chat = _text_columns(config, task.columns, row)
    usual = _LABELS if isinstance(task, ClassificationTask) else _NUMBERS
    target = find_column(row, task.columns.label, [name for name in usual if name not in texts], "task.columns.label")
    return TextLayout(texts, target, is_chat=is_chat)


def _text_columns(config: DataConfig, columns: TargetColumns, row: RawRow) -> tuple[tuple[str, ...], bool]:
    chat = config.columns.messages or next((name for name in _CHATS if name in row.values), None)
    first = config.columns.text or config.columns.prompt
    if chat and not first:
        if columns.text_pair:
            raise DataError("task.columns.text_pair: pairs are of texts, not of conversations")
        return (find_column(row, chat, (), "data.columns.messages"),), True
    pair = next((both for both in _PAIRS if all(name in row.values for name in both)), None)
    if pair and not first and not columns.text_pair:
        return pair, False
    usual = [name for name in TEXTS if name != columns.text_pair]
    text = find_column(row, first, usual, "data.columns.text")
    second = columns.text_pair or (pair[1] if pair and pair[0] == text else None)
    return (text, find_column(row, second, (), "task.columns.text_pair")) if second else (text,), False


def _pair_layout(columns: PairColumns, row: RawRow) -> TextLayout:
    anchor = find_column(row, columns.anchor, _ANCHORS, "task.columns.anchor")
    rest = [name for name in _POSITIVES if name != anchor]
    positive = find_column(row, columns.positive, rest, "task.columns.positive")
    negatives = columns.negatives or next((name for name in _NEGATIVES if name in row.values), None)
    if columns.score or not negatives:
        score = columns.score or next((name for name in _SCORES if name in row.values), None)
        if score:
            if columns.negatives:
                raise DataError("task.columns: negatives and score do not go together")
            return TextLayout((anchor, positive), find_column(row, score, (), "task.columns.score"))
    return TextLayout((anchor, positive), negatives=negatives)


def find_column(row: RawRow, chosen: str | None, usual: Sequence[str], key: str) -> str:
    """The column that ``key`` of the configuration chooses, or the first of ``usual`` there is. Raises DataError."""
    if chosen is not None:
        if chosen not in row.values:
            raise missing_column(row, chosen, key)
        return chosen
    found = next((name for name in usual if name in row.values), None)
    if found is None:
        known = ", ".join(usual)
        raise DataError(
            f"{row.where} has none of the columns {known} (found: {some_columns(row.values)}); name yours in {key}"
        )
    return found
