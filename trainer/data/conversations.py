"""Rows to conversations: the formats that rows have by their columns, and what stands in a row of each.

``ConversationReader`` reads supervised rows; readers of other data are made of the same parts. Knows neither tokens nor
templates.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from trainer.config.data import Columns, DataConfig, ShapeName
from trainer.data.messages import (
    ASSISTANT,
    Conversation,
    Message,
    key_of,
    messages_of,
    named,
    pairs_of,
    spelled_usually,
    tools_of,
    with_system,
    with_tools_as,
)
from trainer.data.rows import RawRow
from trainer.errors import DataError

_SHOWN_COLUMNS = 12
_PROMPTS = ("prompt", "question", "query", "instruction", "input", "content", "text", "source", "utterance")
_RESPONSES = ("answer", "output", "response", "completion", "summary", "label", "target", "sql")


@dataclass(frozen=True)
class RowFormat:
    """A shape of rows: the usual column of each role. Rows must have those of ``required``."""

    name: ShapeName
    required: dict[str, str]
    optional: dict[str, str] = field(default_factory=dict)


_BESIDE = {"system": "system", "history": "history"}
# A row has the first of these whose required columns it has.
ROW_FORMATS = (
    RowFormat("messages", {"messages": "messages"}, {"system": "system", "tools": "tools"}),
    RowFormat("sharegpt", {"messages": "conversations"}, {"system": "system", "tools": "tools"}),
    RowFormat("prompt_response", {"prompt": "prompt", "response": "response"}, _BESIDE),
    RowFormat("prompt_completion", {"prompt": "prompt", "response": "completion"}, _BESIDE),
    RowFormat("alpaca", {"prompt": "instruction", "response": "output"}, {"input": "input", **_BESIDE}),
    RowFormat("text", {"text": "text"}),
)


@dataclass(frozen=True)
class Layout:
    """The shape that rows have, and the column of each role."""

    shape: ShapeName
    columns: dict[str, str]
    required: tuple[str, ...]
    found: tuple[str, ...]  # in the first row

    def check(self, row: RawRow) -> None:
        """Raise DataError when ``row`` lacks a column."""
        for column in self.required:
            if column not in row.values:
                raise _missing(row, column, self)

    def __str__(self) -> str:
        return f"{self.shape} ({', '.join(self.found)})"


def find_layout(config: DataConfig, row: RawRow) -> Layout:
    """The layout of rows like ``row``, by the configuration and then by the names of the columns.

    Columns that the configuration names must be in every row; other optional ones may be. Raises DataError.
    """
    named = {role: name for role, name in msgspec.structs.asdict(config.columns).items() if name}
    shapes = [shape for shape in ROW_FORMATS if config.shape in ("auto", shape.name)]
    fitting = [shape for shape in shapes if named.keys() <= {*shape.required, *shape.optional}]
    if not fitting:
        known = ", ".join([*shapes[0].required, *shapes[0].optional] if len(shapes) == 1 else Columns.__struct_fields__)
        raise DataError(
            f"data.columns: {' and '.join(named)} do not go together"
            + (f" in the shape {config.shape} (it has {known})" if config.shape != "auto" else "")
        )
    for shape in fitting:
        layout = _layout(shape, named, row)
        if all(column in row.values for column in layout.required):
            _check_text_alone(layout, config, row)
            return layout
    if named or len(fitting) == 1:
        closest = max((_layout(shape, named, row) for shape in fitting), key=lambda layout: _columns_found(layout, row))
        lacking = next(column for column in closest.required if column not in row.values)
        raise _missing(row, lacking, None)
    raise DataError(
        f"{row.where} has columns of no known shape (found: {some_columns(row.values)}; "
        f"known: {'; '.join(' and '.join(shape.required.values()) for shape in ROW_FORMATS)}); {_suggestion(row)}"
    )


def _layout(shape: RowFormat, named: dict[str, str], row: RawRow) -> Layout:
    columns = {**shape.required, **shape.optional, **named}
    required = {**shape.required, **named}
    found = tuple(name for name in columns.values() if name in row.values)
    return Layout(shape.name, columns, tuple(columns[role] for role in required), found)


def _check_text_alone(layout: Layout, config: DataConfig, row: RawRow) -> None:
    """Raise DataError where a text that was found by its name has an answer beside it, which would not be learned."""
    answer = _first(_RESPONSES, row.values)
    if layout.shape == "text" and answer and config.shape == "auto" and not config.columns.text:
        raise DataError(
            f"{row.where} has the columns 'text' and {answer!r}: for questions and answers set "
            f"data.columns.prompt=text data.columns.response={answer}, for plain text data.shape=text"
        )


def _columns_found(layout: Layout, row: RawRow) -> int:
    return sum(column in row.values for column in layout.required)


def _missing(row: RawRow, column: str, expected: Layout | None) -> DataError:
    return missing_column(row, column, "data.columns", instead=_other_shape(row, expected) if expected else "")


def missing_column(row: RawRow, column: str, where_to_name: str, *, instead: str = "") -> DataError:
    """``row`` lacks ``column``, whose name is set under ``where_to_name``; ``instead`` is advice in its place."""
    near = difflib.get_close_matches(column, list(row.values), 1, 0.6)
    hint = f"did you mean {near[0]!r}? " if near else ""
    advice = instead or f"{hint}name yours in {where_to_name}"
    return DataError(f"{row.where} has no column {column!r} (found: {some_columns(row.values)}); {advice}")


def _other_shape(row: RawRow, expected: Layout) -> str:
    for shape in ROW_FORMATS:
        if shape.name != expected.shape and all(name in row.values for name in shape.required.values()):
            return f"it has the shape {shape.name}, and rows before it {expected.shape}: a run reads rows of one shape"
    return ""


def _suggestion(row: RawRow) -> str:
    prompt = _first(_PROMPTS, row.values)
    response = _first([name for name in _RESPONSES if name != prompt], row.values)
    if prompt and response:
        return f"perhaps data.columns.prompt={prompt} data.columns.response={response}"
    return "name yours in data.columns"


def _first(names: Sequence[str], among: Iterable[str]) -> str | None:
    return next((name for name in names if name in among), None)


def some_columns(columns: Iterable[str]) -> str:
    """The first of ``columns``, in words."""
    names = list(columns)
    more = f", and {len(names) - _SHOWN_COLUMNS} more" if len(names) > _SHOWN_COLUMNS else ""
    return (", ".join(names[:_SHOWN_COLUMNS]) or "none") + more


TEXT = "text"  # the role of the one message of a row that is text only


class DroppedRow(Exception):  # noqa: N818  (not an error: it is counted)
    """A row that cannot be used; the message is the reason under which it is counted."""


@dataclass(frozen=True)
class ParsedRow:
    """A row as read. ``tools`` are left for the template to write, where the configuration wants that.

    ``empty_answers`` are those that say nothing: they are read, not learned, and cut off at the end. ``with_tools``:
    there are functions or calls in it, however they are written.
    """

    conversation: Conversation
    tools: tuple[Any, ...] = ()
    empty_answers: int = 0
    with_tools: bool = False


def read_row(row: RawRow, layout: Layout, config: DataConfig) -> ParsedRow:
    """What stands in ``row``. Raises DataError for wrong columns and types, DroppedRow for what teaches nothing."""
    layout.check(row)
    cells = Cells(row, layout.columns)
    if layout.shape == "text":
        text = cells.text("text")
        _require_text(text, "empty text")
        return ParsedRow((Message(TEXT, text),))
    is_chat = "messages" in layout.columns
    messages = _chat(cells, config) if is_chat else _turns(cells, config)
    messages = with_system(messages, cells.optional("system") or config.system_prompt)
    messages, empty = without_empty_answers(messages, cut=is_chat)
    tools = tools_of(cells.where("tools"), cells.get("tools"))
    with_tools = bool(tools) or any(message.calls for message in messages)
    messages, tools = with_tools_as(config.tools, messages, tools)
    require_answer(messages, config)
    return ParsedRow(messages, tuple(tools), empty, with_tools)


class ConversationReader:
    """Reads the rows of one source, all of which have the shape of its first row. ``with_tools``: some have tools."""

    layout: Layout

    def __init__(self, config: DataConfig) -> None:
        self._config = config
        self.with_tools = False

    def read(self, row: RawRow) -> ParsedRow:
        """What stands in ``row``. Raises DataError and DroppedRow as ``read_row`` does."""
        if not hasattr(self, "layout"):
            self.layout = self._layout_of(row)
        parsed = read_row(row, self.layout, self._config)
        self.with_tools = self.with_tools or parsed.with_tools
        return parsed

    def key(self, parsed: ParsedRow) -> bytes:
        """Bytes that are equal for equal conversations."""
        return key_of(parsed.conversation)

    def _layout_of(self, row: RawRow) -> Layout:
        layout = find_layout(self._config, row)
        if self._config.too_long == "split" and layout.shape != "text":
            raise DataError(f"data.too_long: split is for the shape text; {layout.shape} rows can be dropped or cut")
        return layout


def answer_indices(conversation: Sequence[Message]) -> list[int]:
    """Where the assistant answers: a first message answers nothing."""
    return [i for i, message in enumerate(conversation) if message.role == ASSISTANT and i > 0]


def answers_of(conversation: Sequence[Message], config: DataConfig) -> list[int]:
    """Indices of the messages to be learned: those of the assistant that ``data.learn`` and they themselves allow."""
    answers = answer_indices(conversation)
    if config.learn == "last_answer":
        answers = answers[-1:]
    return [i for i in answers if conversation[i].learned]


def without_empty_answers(conversation: Conversation, *, cut: bool) -> tuple[Conversation, int]:
    """``conversation`` with answers that say nothing not learned, and how many they are, where others say something.

    With ``cut`` it ends with the last one that does.
    """
    answers = answer_indices(conversation)
    empty = {i for i in answers if not _says_something(conversation[i])}
    last = max(set(answers) - empty, default=None)
    if not empty or last is None:
        return conversation, 0
    kept = conversation[: last + 1] if cut and max(empty) > last else conversation
    return tuple(replace(m, learned=m.learned and i not in empty) for i, m in enumerate(kept)), len(empty)


def _says_something(answer: Message) -> bool:
    return bool(answer.content.strip() or answer.thought or any(answer.calls))


def _chat(cells: Cells, config: DataConfig) -> Conversation:
    where = cells.where("messages")
    return messages_of(where, spelled_usually(where, cells.required("messages"), config.tags), config.roles)


def _turns(cells: Cells, config: DataConfig) -> Conversation:
    prompt = joined(cells.text("prompt"), cells.optional("input"))
    _require_text(prompt, "empty prompt")
    history = pairs_of(cells.where("history"), cells.get("history"), config.roles)
    return (*history, Message("user", config.prompt_prefix + prompt), Message(ASSISTANT, cells.text("response")))


def joined(prompt: str, more: str | None) -> str:
    """``prompt`` with its ``input`` below it, as in alpaca's data."""
    if not more or not more.strip():
        return prompt
    return f"{prompt}\n{more}" if prompt.strip() else more


def require_answer(conversation: Conversation, config: DataConfig) -> None:
    """Raise DroppedRow where there is nothing to learn."""
    answers = answer_indices(conversation)
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


class Cells:
    """The cells of one row by their roles; ``columns`` names those that there may be."""

    def __init__(self, row: RawRow, columns: Mapping[str, str]) -> None:
        self.row, self.columns = row, columns

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
