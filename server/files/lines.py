"""A JSONL file, row by row, and what is wrong with it, by line. Blocks on the disk: run it off the event loop."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

MAX_LINE_BYTES = 8 * 2**20
MAX_TOLD = 10  # problems of one file; of the others only how many they are
_BOM = b"\xef\xbb\xbf"


class RowError(ValueError):
    """What is wrong with one row, to stand behind its line."""


@dataclass
class Problems:
    """What is wrong with a file: the first of them with their lines, and how many there are."""

    first: list[tuple[int, str]] = field(default_factory=list)
    count: int = 0

    def add(self, line: int, reason: str) -> None:
        """One more. ``line`` 0: of the whole file."""
        self.count += 1
        if len(self.first) < MAX_TOLD:
            self.first.append((line, reason))

    def __bool__(self) -> bool:
        return self.count > 0

    def __str__(self) -> str:
        told = "; ".join(f"line {line}: {reason}" if line else reason for line, reason in self.first)
        return told + (f"; and {self.count - len(self.first)} more problems" if self.count > len(self.first) else "")


def rows(path: Path, problems: Problems) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects in ``path`` with their lines, from 1; lines that are none are added to ``problems``."""
    with path.open("rb") as file:
        number = 0
        while raw := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(raw) > MAX_LINE_BYTES:
                problems.add(number, f"it is longer than {MAX_LINE_BYTES // 2**20} MiB; the rest was not looked at")
                return
            raw = raw.removeprefix(_BOM) if number == 1 else raw
            if not raw.strip():
                continue
            try:
                row = msgspec.json.decode(raw)
            except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
                problems.add(number, "it is not valid JSON; write one object a line (JSONL)")
                continue
            if not isinstance(row, dict):
                problems.add(number, f"must be an object, not {kind_of(row)}")
                continue
            yield number, row


_KINDS = {"str": "a text", "int": "a number", "float": "a number", "bool": "true or false", "list": "a list"}


def kind_of(value: object) -> str:
    """What ``value`` is, in words."""
    return "null" if value is None else _KINDS.get(type(value).__name__, "an object")


def dump(row: Any) -> bytes:
    """``row`` as one line."""
    return json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
