"""Conversations in which the assistant calls functions, in ShareGPT's form."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from trainer.data.recipes.base import Recipe, Row, Split
from trainer.data.recipes.files import hold_back, json_of, malformed


def _rows(folder: Path, split: Split) -> Iterator[Row]:
    file = folder / "glaive_toolcall_en_demo.json"
    try:
        rows = [{"messages": row["conversations"], "tools": row["tools"]} for row in json_of(file)]
    except (KeyError, TypeError) as error:
        raise malformed(file) from error
    return hold_back(rows, split)


TOOLCALL = Recipe(
    "toolcall", "conversations in which the assistant calls functions", _rows, ("train", "test"),
    ("rougeL", "exact_match"),
)  # fmt: skip
