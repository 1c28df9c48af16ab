"""What a file has to hold, by its purpose. Blocks: run it off the event loop."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from server.catalog.files import Purpose
from server.errors import InvalidRequestError
from server.files.lines import Problems, RowError, kind_of, rows
from server.files.training_rows import RowKind, kind_of_row, trainer_row

MAX_BATCH_REQUESTS = 50_000
MAX_CUSTOM_ID = 512
CODE = "invalid_file_format"


def check_file(path: Path, purpose: Purpose) -> None:
    """Raise InvalidRequestError, with the lines and reasons, for a file that is no use for ``purpose``."""
    problems = Problems()
    if purpose is Purpose.FINE_TUNE:
        check_training(path, problems)
    elif purpose is Purpose.BATCH:
        check_requests(path, problems)
    elif not path.stat().st_size:
        problems.add(0, "it is empty")
    if problems:
        raise InvalidRequestError(f"the file cannot be used for {purpose.value}: {problems}", param="file", code=CODE)


def check_training(path: Path, problems: Problems) -> tuple[RowKind | None, int]:
    """Of which kind the rows are, and how many, as far as they are sound; the others are added to ``problems``."""
    kind, count = None, 0
    for line, row in rows(path, problems):
        try:
            found = kind_of_row(row)
            if kind is not None and found is not kind:
                raise RowError(
                    f"is a {found.value} row, and rows before it are {kind.value} rows; put them into two files"
                )
            kind = found
            trainer_row(row, found)
            count += 1
        except RowError as error:
            problems.add(line, str(error))
    if not count and not problems:
        problems.add(0, "it holds no rows")
    return kind, count


def check_requests(path: Path, problems: Problems) -> int:
    """How many requests a file of a batch holds; what is wrong with it is added to ``problems``."""
    seen: set[str] = set()
    count = 0
    for line, row in rows(path, problems):
        count += 1
        if count > MAX_BATCH_REQUESTS:
            problems.add(line, f"a batch may have {MAX_BATCH_REQUESTS} requests; the rest was not looked at")
            break
        try:
            id = request_id(row)
            if id in seen:
                raise RowError(f"custom_id: {id[:60]!r} stands on an earlier line, too")
            seen.add(id)
        except RowError as error:
            problems.add(line, str(error))
    if not count and not problems:
        problems.add(0, "it holds no requests")
    return count


def request_id(row: Mapping[str, Any]) -> str:
    """The ``custom_id`` of a batch's request, whose form is sound. Raises RowError."""
    id = row.get("custom_id")
    if not isinstance(id, str) or not 0 < len(id) <= MAX_CUSTOM_ID:
        raise RowError(f"custom_id: must be a text of 1 to {MAX_CUSTOM_ID} characters")
    if row.get("method") != "POST":
        raise RowError("method: must be POST")
    if not isinstance(row.get("url"), str):
        raise RowError("url: must be a path such as /v1/chat/completions")
    if not isinstance(row.get("body"), dict):
        raise RowError(f"body: must be an object, not {kind_of(row.get('body'))}")
    return id
