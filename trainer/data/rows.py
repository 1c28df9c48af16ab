"""Reads data files row by row: JSONL, JSON, CSV, TSV and Parquet. Knows columns by name, not what they mean."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.config.data import Format
from trainer.data.json_lists import (
    HALF_CHARACTER,
    is_cut,
    is_json_lines,
    rows_of_json,
    starts_object,
    unreadable,
)
from trainer.data.text import open_text
from trainer.errors import DataError

SUFFIXES: dict[str, Format] = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet",
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
