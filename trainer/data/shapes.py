"""What the columns of a data set are: the known shapes of rows, and which of them a row has."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import msgspec

from trainer.config.data import Columns, DataConfig, ShapeName
from trainer.data.rows import RawRow
from trainer.errors import DataError

_SHOWN_COLUMNS = 12
_PROMPTS = ("prompt", "question", "query", "instruction", "input", "content", "text", "source", "utterance")
_RESPONSES = ("answer", "output", "response", "completion", "summary", "label", "target", "sql")


@dataclass(frozen=True)
class Shape:
    """A shape of rows: the usual column of each role. Rows must have those of ``required``."""

    name: ShapeName
    required: dict[str, str]
    optional: dict[str, str] = field(default_factory=dict)


_BESIDE = {"system": "system", "history": "history"}
# A row has the first of these whose required columns it has.
SHAPES = (
    Shape("messages", {"messages": "messages"}, {"system": "system", "tools": "tools"}),
    Shape("sharegpt", {"messages": "conversations"}, {"system": "system", "tools": "tools"}),
    Shape("prompt_response", {"prompt": "prompt", "response": "response"}, _BESIDE),
    Shape("prompt_completion", {"prompt": "prompt", "response": "completion"}, _BESIDE),
    Shape("alpaca", {"prompt": "instruction", "response": "output"}, {"input": "input", **_BESIDE}),
    Shape("text", {"text": "text"}),
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
    shapes = [shape for shape in SHAPES if config.shape in ("auto", shape.name)]
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
            return layout
    if named or len(fitting) == 1:
        closest = max((_layout(shape, named, row) for shape in fitting), key=lambda layout: _found(layout, row))
        lacking = next(column for column in closest.required if column not in row.values)
        raise _missing(row, lacking, None)
    raise DataError(
        f"{row.where} has columns of no known shape (found: {_shown(row.values)}; "
        f"known: {'; '.join(' and '.join(shape.required.values()) for shape in SHAPES)}); {_suggestion(row)}"
    )


def _layout(shape: Shape, named: dict[str, str], row: RawRow) -> Layout:
    columns = {**shape.required, **shape.optional, **named}
    required = {**shape.required, **named}
    found = tuple(name for name in columns.values() if name in row.values)
    return Layout(shape.name, columns, tuple(columns[role] for role in required), found)


def _found(layout: Layout, row: RawRow) -> int:
    return sum(column in row.values for column in layout.required)


def _missing(row: RawRow, column: str, expected: Layout | None) -> DataError:
    near = difflib.get_close_matches(column, list(row.values), 1, 0.6)
    hint = f"did you mean {near[0]!r}? " if near else ""
    other = _other_shape(row, expected) if expected else ""
    advice = other or f"{hint}name yours in data.columns"
    return DataError(f"{row.where} has no column {column!r} (found: {_shown(row.values)}); {advice}")


def _other_shape(row: RawRow, expected: Layout) -> str:
    for shape in SHAPES:
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


def _shown(columns: Iterable[str]) -> str:
    names = list(columns)
    more = f", and {len(names) - _SHOWN_COLUMNS} more" if len(names) > _SHOWN_COLUMNS else ""
    return (", ".join(names[:_SHOWN_COLUMNS]) or "none") + more
