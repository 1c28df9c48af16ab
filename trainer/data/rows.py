"""Reads data files: JSONL or CSV to rows, each with its line number. Knows columns by name, not what they mean."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from trainer.errors import DataError

Format = Literal["auto", "jsonl", "csv"]
_SUFFIXES: dict[str, Literal["jsonl", "csv"]] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".csv": "csv"}
_SHOWN_COLUMNS = 12


@dataclass(frozen=True)
class RawRow:
    """One row of a file. ``line`` counts from 1; a CSV row is numbered by its last line."""

    line: int
    values: dict[str, Any]


@dataclass(frozen=True)
class DataFile:
    """A data file as read: ``sha256`` is of its bytes."""

    path: Path
    rows: tuple[RawRow, ...]
    sha256: str


def read_data_file(path: Path, data_format: Format, columns: Sequence[str]) -> DataFile:
    """Read ``path``, every row of which must have ``columns``. Raises DataError naming the line."""
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"there is no data file {path}") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    text = _decode(path, data)
    parse = _rows_of_csv if _format(path, data_format) == "csv" else _rows_of_jsonl
    rows = tuple(parse(path, text, columns))
    if not rows:
        raise DataError(f"{path} is empty: it holds no rows")
    return DataFile(path, rows, hashlib.sha256(data).hexdigest())


def _format(path: Path, data_format: Format) -> Literal["jsonl", "csv"]:
    if data_format != "auto":
        return data_format
    if path.suffix.lower() not in _SUFFIXES:
        raise DataError(f"{path.name} ends in neither .jsonl nor .csv; say which it is with data.format")
    return _SUFFIXES[path.suffix.lower()]


def _decode(path: Path, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        start = error.start + (3 if data.startswith(b"\xef\xbb\xbf") else 0)
        line = data.count(b"\n", 0, start) + 1
        raise DataError(
            f"{path} line {line} is not UTF-8: byte 0x{data[start]:02x} at offset {start}; save the file as UTF-8"
        ) from error


def _rows_of_jsonl(path: Path, text: str, columns: Sequence[str]) -> Iterator[RawRow]:
    for number, line in enumerate(text.split("\n"), 1):  # splitlines() would also cut at U+2028 inside of a string
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            hint = " (one JSON object a line is expected, not one array)" if line.lstrip().startswith("[") else ""
            raise DataError(
                f"{path} line {number} is not valid JSON: {error.msg} at column {error.colno}{hint}"
            ) from error
        except RecursionError as error:
            raise DataError(f"{path} line {number} is nested too deeply") from error
        if not isinstance(value, dict):
            raise DataError(f"{path} line {number} is not a JSON object; each line must be one")
        _require(path, number, value, columns)
        yield RawRow(number, value)


def _rows_of_csv(path: Path, text: str, columns: Sequence[str]) -> Iterator[RawRow]:
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        names = reader.fieldnames or []
        if len(set(names)) < len(names):
            raise DataError(f"{path} line 1 names a column twice")
        if names:
            _require(path, 1, dict.fromkeys(names), columns)
        for row in reader:
            if None in row or None in row.values():
                raise DataError(
                    f"{path} line {reader.line_num} has {'more' if None in row else 'fewer'} cells than the "
                    f"{len(names)} columns of the header"
                )
            yield RawRow(reader.line_num, dict(row))
    except csv.Error as error:
        raise DataError(f"{path} line {reader.line_num} is not valid CSV: {error}") from error


def _require(path: Path, line: int, values: dict[str, Any], columns: Sequence[str]) -> None:
    for column in columns:
        if column not in values:
            found = ", ".join(list(values)[:_SHOWN_COLUMNS]) or "none"
            raise DataError(f"{path} line {line} has no column {column!r} (found: {found}); name yours in data.columns")
