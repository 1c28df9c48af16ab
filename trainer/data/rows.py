"""Reads data files row by row: JSON, JSONL, CSV, TSV, Parquet, CoNLL and text. Everything wrong is one line.

Knows columns by name, not what they mean.
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
from typing import TYPE_CHECKING, Any, cast

from trainer.config.data import Format
from trainer.data.json_rows import (
    HALF_CHARACTER,
    JsonLayout,
    is_cut,
    json_layout,
    rows_of_json,
    rows_of_objects,
    unreadable,
)
from trainer.errors import DataError

if TYPE_CHECKING:
    import pyarrow

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


SUFFIXES: dict[str, Format] = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet",
    ".conll": "conll", ".bio": "conll", ".iob": "conll", ".iob2": "conll", ".txt": "txt",
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
    if kind == "json" and (layout := _json_layout(path, split)) != "lines":
        with open_text(path, newline="\n") as file:
            found = rows_of_json(path, file, split) if layout == "whole" else rows_of_objects(path, file)
            yield from (RawRow(f"{path} {place}", values) for place, values in found)
    elif kind in ("json", "jsonl"):
        yield from _rows_of_jsonl(path)
    elif kind == "parquet":
        yield from _rows_of_parquet(path)
    elif kind == "conll":
        yield from _rows_of_conll(path)
    elif kind.startswith("txt"):
        if data_format == "auto" and _json_layout(path, split) == "lines":
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
    if format_of(path, data_format) != "json" or _json_layout(path, key) != "whole":
        return False
    with open_text(path, newline="\n") as file:
        while (char := file.read(1)).isspace():
            pass
    return char == "{"


def _json_layout(path: Path, key: str | None) -> JsonLayout:
    with open_text(path, newline="\n") as file:
        return json_layout(path, file, key)


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


_COMMENT = re.compile(r"# (?:id |\w+ ?=)")  # in front of a sentence


def _rows_of_conll(path: Path) -> Iterator[RawRow]:
    """Words in the first column of a line and their tags in the last one; a blank line ends a sentence."""
    words: list[str] = []
    tags: list[str] = []
    began = number = 0
    with open_text(path, newline=None) as file:
        for number, line in enumerate(file, 1):
            cells = line.rstrip("\n").split("\t") if "\t" in line else line.split()
            if not line.strip() or cells[0] == "-DOCSTART-":
                if words:
                    yield RawRow(f"{path} line {began}", {"tokens": words, "tags": tags})
                words, tags = [], []
                continue
            if not words and _COMMENT.match(line):
                continue
            if len(cells) < 2 or not cells[-1].strip():
                raise DataError(f"{path} line {number} has no tag: a word and its tag are expected, then a blank line")
            began = began if words else number
            words.append(cells[0])
            tags.append(cells[-1].strip())
        if words:
            yield RawRow(f"{path} line {began}", {"tokens": words, "tags": tags})


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
                nested = [field for field in batch.schema if pyarrow.types.is_nested(field.type)]
                for values in batch.to_pylist():
                    number += 1
                    values |= {field.name: _without_added_nulls(values[field.name], field.type) for field in nested}
                    yield RawRow(f"{path} row {number}", values)
    except (pyarrow.ArrowException, OSError) as error:
        reason = (str(error).strip().splitlines() or ["it is damaged"])[0]
        raise DataError(f"{path} cannot be read as Parquet: {reason}") from error


def _without_added_nulls(value: Any, kind: pyarrow.DataType) -> Any:
    """``value`` without the fields that are null, which a struct has for what other rows have.

    Nulls that cannot have been added stay: whole values, items of lists, values of maps, a field that no row has.
    """
    from pyarrow import types

    if value is None:
        return None
    if types.is_struct(kind):
        return {
            field.name: _without_added_nulls(value[field.name], field.type)
            for field in kind
            if value[field.name] is not None or types.is_null(field.type)
        }
    if types.is_map(kind):
        return {key: _without_added_nulls(item, kind.item_type) for key, item in value}
    if types.is_dictionary(kind) or not types.is_nested(kind) or types.is_union(kind):
        return value
    return [_without_added_nulls(item, kind.value_type) for item in value]
