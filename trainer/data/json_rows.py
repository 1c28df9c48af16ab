"""Reads the rows of a JSON file that is open, piece by piece: one array, an object with one, or objects in turn.

Knows columns by name, not what they mean.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, TextIO

from trainer.errors import DataError

USUAL_KEYS = ("data", "train", "rows", "examples", "items", "records", "instances")
_CHUNK = 1 << 20  # characters
_EDGE = 16  # an error so near to the end of what was read may be for want of more
HALF_CHARACTER = "holds half of a character (a surrogate without its other half, such as \\ud83d)"
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_SPACE = " \t\r\n"


JsonLayout = Literal["whole", "lines", "objects"]


def json_layout(path: Path, file: TextIO, key: str | None) -> JsonLayout:
    """How ``file``, the beginning of a file named .json, holds its rows.

    ``whole``: in one array, which may stand in an object under ``key``, or under a usual one. As many do: ``lines``, an
    object in each; ``objects``, one after the other, each over several lines. What is no JSON is whole.
    """
    parser = _Parser(path, file)
    if parser.peek() != "{":
        return "whole"
    first = parser.line
    try:
        has_list = _has_list(parser, key)
        in_line = parser.line == first
        more = parser.peek() == "{"
    except DataError:
        return "whole"
    if has_list is None or not (more or (in_line and not has_list)):
        return "whole"
    return "lines" if in_line else "objects"


def _has_list(parser: _Parser, key: str | None) -> bool | None:
    """Whether the object that comes next has a list that may be the rows; None as soon as it is long enough for all."""
    parser.take("{")
    begun = found = False
    while parser.peek() != "}":
        if begun:
            parser.take(",")
        begun, name = True, parser.value()
        parser.take(":")
        if parser.peek() != "[" or not _is_rows(name, key):
            parser.value()
            continue
        found, end = True, parser.passed + _CHUNK
        for _line in parser.places():
            parser.value()
            if parser.passed > end:
                return None
    parser.take("}")
    return found


def _is_rows(name: object, key: str | None) -> bool:
    return name == key if key else name in USUAL_KEYS


def unreadable(error: RecursionError | ValueError) -> str:
    """Why JSON that is well written cannot be read."""
    return "is nested too deeply" if isinstance(error, RecursionError) else "holds a number of too many digits"


def is_cut(text: str, value: Any) -> bool:
    """Whether ``value``, read from the JSON ``text``, holds half of a character, as of an emoji that was cut in two."""
    if not _SURROGATE.search(text):
        return False
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def rows_of_objects(path: Path, file: TextIO) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of ``file`` that stand one after the other, with the lines on which they begin. Raises DataError."""
    parser = _Parser(path, file)
    while parser.peek():
        place = f"line {parser.line}"
        yield place, _object(parser, place)


def rows_of_json(path: Path, file: TextIO, key: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of ``file`` with their places (``row 3 (line 17)``). ``key`` names the list in an object.

    Raises DataError.
    """
    parser = _Parser(path, file)
    start = parser.peek()
    if start == "[":
        yield from _rows_of_array(parser)
    elif start == "{":
        yield from _rows_of_object(parser, key)
    elif start:
        raise parser.error("neither an array nor an object")
    if rest := parser.peek():
        raise parser.error(f"{rest!r} after the end of the data")


def _rows_of_array(parser: _Parser) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(parser.places(), 1):
        place = f"row {number} (line {line})"
        yield place, _object(parser, place)


def _object(parser: _Parser, place: str) -> dict[str, Any]:
    value = parser.value()
    if not isinstance(value, dict):
        raise DataError(f"{parser.path} {place} is not a JSON object")
    return value


def _rows_of_object(parser: _Parser, key: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """The list under ``key``, or under the first usual one; other keys are passed over."""
    parser.take("{")
    lists: list[str] = []
    found = False
    while parser.peek() != "}":
        if lists or found:
            parser.take(",")
            parser.peek()
        name = parser.value()
        parser.take(":")
        if not found and parser.peek() == "[" and _is_rows(name, key):
            found = True
            yield from _rows_of_array(parser)
        else:
            parser.value()
            lists.append(str(name))
    parser.take("}")
    if not found:
        wanted = f"under {key!r}" if key else f"under any of {', '.join(USUAL_KEYS)}"
        raise DataError(
            f"{parser.path} has no list of rows {wanted} (found: {', '.join(lists) or 'nothing'}); "
            "name the key with data.split"
        )


class _Parser:
    """Reads JSON values one after the other from a file of any length."""

    def __init__(self, path: Path, file: TextIO) -> None:
        self.path = path
        self._file = file
        self._decoder = json.JSONDecoder()
        self._text = ""
        self._at = 0
        self._before = 0  # characters before the buffer
        self._lines = 0  # newlines before _counted
        self._counted = 0  # how far into the buffer
        self._ended = False

    @property
    def line(self) -> int:
        """The line that is read next."""
        self._lines += self._text.count("\n", self._counted, self._at)
        self._counted = self._at
        return self._lines + 1

    @property
    def passed(self) -> int:
        """Characters before what is read next."""
        return self._before + self._at

    def places(self) -> Iterator[int]:
        """The lines of the items of the list that comes next; each is to be read before the next line is asked for."""
        self.take("[")
        begun = False
        while self.peek() != "]":
            if begun:
                self.take(",")
                self.peek()
            begun = True
            yield self.line
        self.take("]")

    def error(self, what: str) -> DataError:
        """What is wrong at this line."""
        return DataError(f"{self.path} line {self.line} is not valid JSON: {what}")

    def peek(self) -> str:
        """The next character that is no white space; empty at the end of the file."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in _SPACE:
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._read():
                return ""

    def take(self, char: str) -> None:
        """Go past ``char``, which must come next."""
        if (found := self.peek()) != char:
            raise self.error(f"{char!r} is expected, not {found!r}" if found else f"the file ends before {char!r}")
        self._at += 1

    def value(self) -> Any:
        """The value that comes next."""
        self.peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated string") or error.pos >= len(self._text) - _EDGE
                if cut and self._read():
                    continue
                self._at = min(error.pos, len(self._text))
                raise self.error(error.msg) from error
            except (RecursionError, ValueError) as error:
                raise DataError(f"{self.path} line {self.line} {unreadable(error)}") from error
            if end == len(self._text) and self._read():
                continue  # a number may go on
            if is_cut(self._text[self._at : end], value):
                raise DataError(f"{self.path} line {self.line} {HALF_CHARACTER}")
            self._at = end
            return value

    def _read(self) -> bool:
        """Read on, twice as much as is in hand, so that long values are parsed few times."""
        if self._ended:
            return False
        self._lines += self._text.count("\n", self._counted, self._at)
        rest = self._text[self._at :]
        more = self._file.read(max(_CHUNK, len(rest)))
        self._ended = not more
        self._before += self._at
        self._text, self._at, self._counted = rest + more, 0, 0
        return bool(more)
