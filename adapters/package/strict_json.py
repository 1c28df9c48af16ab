"""JSON as we accept it from outside: one object, UTF-8, no key twice, no NaN, not deep, not long."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from adapters.errors import PackageError
from adapters.quoting import describe_error, quote


def read_object(path: Path, max_bytes: int) -> dict[str, Any]:
    """The object in the file ``path``; PackageError when it is missing, too long or not such an object."""
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise PackageError.unreadable(path.name, error) from error
    if len(data) > max_bytes:
        raise PackageError(f"{path.name} is longer than {max_bytes} bytes")
    return parse_object(data, path.name)


def parse_object(data: bytes, what: str) -> dict[str, Any]:
    """The object that ``data`` spells; PackageError, naming ``what``, for anything else."""
    try:
        value = msgspec.json.decode(data)  # strict about UTF-8, surrogates, NaN and ranges
        if isinstance(value, dict):
            value = json.loads(data, object_pairs_hook=_no_duplicates)  # the one thing msgspec does not tell
    except RecursionError as error:
        raise PackageError(f"{what} is nested too deeply") from error
    except ValueError as error:  # msgspec.DecodeError, and our own refusal
        raise PackageError(f"{what} is not valid JSON: {describe_error(error)}") from error
    if not isinstance(value, dict):
        raise PackageError(f"{what} must hold a JSON object, not {type(value).__name__}")
    return value


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"{quote(twice)} appears twice in one object")
    return out
