"""What a recipe is: how one published data set becomes rows to train and to be scored on; and how its files are read.

Fields of a row (all but the first ones only where a metric needs them):

    prompt, response   text; or instead of both
    messages           list of turns, {"role", "content"} or ShareGPT's {"from", "value"} (toolcall)
    tools              the functions that its assistant may call, as JSON text (toolcall)
    labels             list of text: every label that an answer can be (banking77, clinc150, emotion)
    text               the text that is to be labelled, without an instruction (banking77, clinc150, emotion)
    tokens, tags       lists of text: words, or characters, and the tag of each (wnut17, resume_ner)
    sqlite             path of the database that the SQL is executed on (geography)
    references         list of text: every right response to this prompt (e2e_nlg)
    answer             the number at the end of the solution (gsm8k)
    entry_point, test  the function to write and the code that checks it (humaneval)

Responses of entity sets (wnut17, resume_ner) are one JSON object: type to the texts found, in order of appearance.
Those of snips are ``{"intent": name, "slots": {name: value}}``.

Rows come in one fixed order in which neighbours are of different classes, so that the first hundred are a fair sample.
Everything wrong with a file is a DataError that names file and line.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from trainer.errors import DataError

Split = Literal["train", "validation", "test"]
Row = dict[str, Any]


@dataclass(frozen=True)
class Recipe:
    """One data set. ``read`` yields the rows of a split of ``splits``; ``metrics`` are names of trainer.evaluation.

    ``added_tokens`` are the special tokens that its responses are written with.
    """

    name: str
    summary: str
    read: Callable[[Path, Split], Iterator[Row]]
    splits: tuple[Split, ...]
    metrics: tuple[str, ...]
    system_prompt: str | None = None
    added_tokens: tuple[str, ...] = ()

    def rows(self, folder: Path, split: Split) -> Iterator[Row]:
        """The rows of ``split`` of the set in ``folder``. DataError naming file and line where it is broken."""
        if not folder.is_dir():
            raise DataError(
                f"data.path {folder} is no folder; recipe {self.name} reads a folder with the files of the set"
            )
        if split not in self.splits:
            raise DataError(f"recipe {self.name} has no {split} rows; it has {', '.join(self.splits)}")
        return self.read(folder, split)


HELD_BACK = 0.1  # of a set that has no test split of its own
_SEED = 0  # of every order and split here: the same rows for everybody
_T = TypeVar("_T")


def text_of(path: Path, *, errors: Literal["strict", "replace"] = "strict") -> str:
    """The text of ``path``, unpacked where its name ends in .gz."""
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig", errors)
    except FileNotFoundError as error:
        raise DataError(f"there is no data file {path}; is data.path the folder of this set?") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path} line {line} is not UTF-8") from error
    except (OSError, EOFError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def lines_of(path: Path) -> list[str]:
    """The lines of ``path``, without their ends; the last one may lack its own."""
    lines = text_of(path).replace("\r\n", "\n").split("\n")  # splitlines() would also cut at U+2028 and the like
    return lines if lines[-1] else lines[:-1]


def json_of(path: Path, *, errors: Literal["strict", "replace"] = "strict") -> Any:
    """The one JSON value in ``path``."""
    try:
        return json.loads(text_of(path, errors=errors))
    except json.JSONDecodeError as error:
        raise DataError(f"{path} line {error.lineno} is not valid JSON: {error.msg}") from error


def jsonl_of(path: Path, *keys: str) -> Iterator[dict[str, Any]]:
    """One object a line, each with text under ``keys``."""
    for number, line in enumerate(lines_of(path), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path} line {number} is not valid JSON: {error.msg}") from error
        yield with_text(row, keys, f"{path} line {number}")


def csv_of(path: Path, *columns: str) -> Iterator[dict[str, str]]:
    """Rows of a CSV file with a header, each with ``columns``."""
    reader = csv.DictReader(io.StringIO(text_of(path), newline=""), strict=True)
    try:
        for row in reader:
            yield with_text(row, columns, f"{path} line {reader.line_num}")
    except csv.Error as error:
        raise DataError(f"{path} line {reader.reader.line_num} is not valid CSV: {error}") from error


def with_text(row: Any, keys: Sequence[str], where: str) -> dict[str, Any]:
    """``row`` if it is an object with text under all ``keys``."""
    if not isinstance(row, dict):
        raise DataError(f"{where} is not an object")
    for key in keys:
        if not isinstance(row.get(key), str):
            raise DataError(f"{where} has no text under {key!r}")
    return row


def malformed(where: Path | str) -> DataError:
    """What to raise where a file has not the structure it is published in."""
    return DataError(f"{where} is not built as this set is published; is data.path the folder of this set?")


def shuffled(rows: Iterable[_T]) -> list[_T]:
    """``rows`` in the one fixed random order."""
    mixed = list(rows)
    random.Random(_SEED).shuffle(mixed)
    return mixed


def hold_back(rows: Sequence[_T], split: Split) -> Iterator[_T]:
    """The train or test rows of a set without a test split: HELD_BACK of them, always the same, are for testing."""
    held = set(random.Random(_SEED).sample(range(len(rows)), round(HELD_BACK * len(rows))))
    return (row for i, row in enumerate(rows) if (i in held) == (split == "test"))
