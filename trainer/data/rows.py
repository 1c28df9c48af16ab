"""Reads data files row by row: JSONL, JSON, CSV, TSV, Parquet and text, packed or not. Everything wrong is one line.

A JSON file is one array, or one object with an array in it, read piece by piece. Knows columns by name, not what they
mean.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO, cast

from trainer.config.data import Format
from trainer.errors import DataError

_HEAD = 64  # bytes in which text of two bytes a character shows its zeros
_UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")


@contextlib.contextmanager
def open_text(path: Path, *, newline: str | None) -> Iterator[io.TextIOWrapper]:
    """The text of ``path``, unpacked where its name ends in .gz. Raises DataError, also while it is being read."""
    try:
        with open_bytes(path) as file:
            if b"\0" in file.peek(_HEAD)[:_HEAD]:
                raise _utf16(path)
            yield io.TextIOWrapper(file, encoding="utf-8-sig", newline=newline)
    except UnicodeDecodeError as error:
        raise _not_utf8(path) from error


@contextlib.contextmanager
def open_bytes(path: Path) -> Iterator[io.BufferedReader]:
    """The bytes of ``path``, unpacked where its name ends in .gz. Raises DataError, also while it is being read."""
    try:
        with cast("io.BufferedReader", gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb")) as file:
            yield file
    except FileNotFoundError as error:
        raise DataError(f"there is no data file {path}") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be unpacked: it is no whole gzip file") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


def _utf16(path: Path) -> DataError:
    return DataError(f"{path} is UTF-16, not UTF-8; convert it: iconv -f UTF-16 -t UTF-8 OLD > NEW")


def _not_utf8(path: Path) -> DataError:
    """The first byte of ``path`` that is not UTF-8, and what the file seems to be."""
    offset = 0
    with open_bytes(path) as file:
        for number, line in enumerate(file, 1):
            if number == 1 and line.startswith(_UTF16_BOMS):
                return _utf16(path)
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                at = error.start
                where = f"{path} line {number} is not UTF-8: byte 0x{line[at]:02x} at offset {offset + at}"
                return DataError(f"{where}; {_advice(line)}")
            offset += len(line)
    return DataError(f"{path} is not UTF-8; save the file as UTF-8")


def _advice(line: bytes) -> str:
    """Most files of Chinese text that are not UTF-8 are GBK, of which GB18030 is the whole."""
    try:
        text = line.decode("gb18030")
    except UnicodeDecodeError:
        return "save the file as UTF-8"
    chinese = sum("\u4e00" <= char <= "\u9fff" for char in text)
    foreign = sum(char > "\x7f" for char in text)
    if chinese < 2 or chinese < foreign / 2:
        return "save the file as UTF-8"
    return "it looks like GBK; convert it: iconv -f GB18030 -t UTF-8 OLD > NEW"


USUAL_KEYS = ("data", "train", "rows", "examples", "items", "records", "instances")
_CHUNK = 1 << 20  # characters
_EDGE = 16  # an error so near to the end of what was read may be for want of more
HALF_CHARACTER = "holds half of a character (a surrogate without its other half, such as \\ud83d)"
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_SPACE = " \t\r\n"


def is_json_lines(path: Path, key: str | None) -> bool:
    """Whether a file named .json holds one object a line, as many do, rather than one with the list of rows."""
    with open_text(path, newline="\n") as file:
        first = _next_line(file)
        second = _next_line(file)
    try:
        value = json.loads(first) if first else None
    except (RecursionError, ValueError):
        return False
    if not isinstance(value, dict):
        return False
    lists = [name for name, item in value.items() if isinstance(item, list)]
    return second.startswith("{") or not any(name == key if key else name in USUAL_KEYS for name in lists)


def starts_object(path: Path) -> bool:
    """Whether the first character of ``path`` that is no white space is a brace."""
    with open_text(path, newline="\n") as file:
        return _next_line(file).startswith("{")


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


def _next_line(file: TextIO) -> str:
    while line := file.readline(_CHUNK):
        if line.strip():
            return line.strip()
    return ""


def rows_of_json(path: Path, key: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows with their places (``row 3 (line 17)``). ``key`` names the list in an object. Raises DataError."""
    with open_text(path, newline="\n") as file:
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
    parser.take("[")
    number = 0
    while parser.peek() != "]":
        if number:
            parser.take(",")
        number += 1
        parser.peek()
        place = f"row {number} (line {parser.line})"
        value = parser.value()
        if not isinstance(value, dict):
            raise DataError(f"{parser.path} {place} is not a JSON object")
        yield place, value
    parser.take("]")


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
        if not found and parser.peek() == "[" and (name == key if key else name in USUAL_KEYS):
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
        self._lines = 0  # newlines before _counted
        self._counted = 0  # how far into the buffer
        self._ended = False

    @property
    def line(self) -> int:
        """The line that is read next."""
        self._lines += self._text.count("\n", self._counted, self._at)
        self._counted = self._at
        return self._lines + 1

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
        self._text, self._at, self._counted = rest + more, 0, 0
        return bool(more)


SUFFIXES: dict[str, Format] = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet",
    ".txt": "txt",
}  # fmt: skip
_BATCH = 256  # rows of a Parquet file in memory at a time
_LONGEST_CELL = 2**31 - 1


@dataclass(frozen=True)
class RawRow:
    """One row; ``where`` says from where it is (``FILE line 7``). Lines count from 1, a CSV row's is its last."""

    where: str
    values: dict[str, Any]


def read_rows(path: Path, data_format: Format = "auto", split: str | None = None) -> Iterator[RawRow]:
    """The rows of ``path``. ``split`` is the key of the list in a JSON object. Raises DataError naming the line."""
    kind = format_of(path, data_format)
    if kind == "json" and is_json_lines(path, split):
        kind = "jsonl"
    if kind == "json":
        yield from (RawRow(f"{path} {place}", values) for place, values in rows_of_json(path, split))
    elif kind == "jsonl":
        yield from _rows_of_jsonl(path)
    elif kind == "parquet":
        yield from _rows_of_parquet(path)
    elif kind.startswith("txt"):
        if data_format == "auto" and is_json_lines(path, split):
            raise DataError(f"{path} begins with a JSON object; say which it is with data.format: jsonl, or txt")
        yield from _rows_of_txt(path, kind)
    else:
        yield from _rows_of_csv(path, "\t" if kind == "tsv" else ",")


def format_of(path: Path, data_format: Format = "auto") -> Format:
    """How ``path`` is written, by its name unless ``data_format`` says it. Raises DataError."""
    if data_format != "auto":
        return data_format
    name = path.with_suffix("") if path.suffix.lower() == ".gz" else path
    if name.suffix.lower() not in SUFFIXES:
        known = ", ".join(SUFFIXES)
        raise DataError(f"{path.name} ends in none of {known} (or .gz of them); say which it is with data.format")
    return SUFFIXES[name.suffix.lower()]


def is_json_object(path: Path, data_format: Format, key: str | None) -> bool:
    """Whether ``path`` is one JSON object, which may hold a list under ``key`` as for each split. Raises DataError."""
    return format_of(path, data_format) == "json" and not is_json_lines(path, key) and starts_object(path)


def _rows_of_jsonl(path: Path) -> Iterator[RawRow]:
    with open_text(path, newline="\n") as file:  # other ends of lines may stand inside of a string
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            where = f"{path} line {number}"
            try:
                value = json.loads(line)
            except json.JSONDecodeError as error:
                array = line.lstrip().startswith("[")
                hint = " (one JSON object a line is expected; for one array set data.format: json)" if array else ""
                raise DataError(f"{where} is not valid JSON: {error.msg} at column {error.colno}{hint}") from error
            except (RecursionError, ValueError) as error:
                raise DataError(f"{where} {unreadable(error)}") from error
            if is_cut(line, value):
                raise DataError(f"{where} {HALF_CHARACTER}")
            if not isinstance(value, dict):
                raise DataError(f"{where} is not a JSON object; each line must be one")
            yield RawRow(where, value)


def _rows_of_csv(path: Path, delimiter: str) -> Iterator[RawRow]:
    csv.field_size_limit(_LONGEST_CELL)
    with open_text(path, newline="") as file:
        reader = csv.DictReader(file, strict=True, delimiter=delimiter)
        try:
            names = list(reader.fieldnames or [])
            if len(set(names)) < len(names):
                raise DataError(f"{path} line 1 names a column twice")
            for row in reader:
                if None in row or None in row.values():
                    count = "more" if None in row else "fewer"
                    raise DataError(
                        f"{path} line {reader.line_num} has {count} cells than the {len(names)} columns of the header"
                    )
                yield RawRow(f"{path} line {reader.line_num}", dict(row))
        except csv.Error as error:
            raise DataError(f"{path} line {reader.reader.line_num} is not valid CSV: {error}") from error


def _rows_of_txt(path: Path, kind: Format) -> Iterator[RawRow]:
    """A document for each line, for what stands between blank lines, or for the whole file."""
    with open_text(path, newline=None) as file:
        if kind == "txt_file":
            text = file.read()
            yield from [RawRow(str(path), {"text": text})] if text.strip() else []
            return
        lines: list[str] = []
        for number, line in enumerate(file, 1):
            if line.strip():
                lines.append(line)
            if lines and (kind == "txt" or not line.strip()):
                yield RawRow(f"{path} line {number}", {"text": "".join(lines).rstrip("\n")})
                lines = []
        if lines:
            yield RawRow(f"{path} line {number}", {"text": "".join(lines).rstrip("\n")})


def _rows_of_parquet(path: Path) -> Iterator[RawRow]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(f"{path.name} is Parquet, which needs pyarrow: pip install 'hotswap[parquet]'") from error
    if not path.is_file():
        raise DataError(f"there is no data file {path}")
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_BATCH):
                for values in batch.to_pylist():
                    number += 1
                    yield RawRow(f"{path} row {number}", values)
    except (pyarrow.ArrowException, OSError) as error:
        reason = (str(error).strip().splitlines() or ["it is damaged"])[0]
        raise DataError(f"{path} cannot be read as Parquet: {reason}") from error
