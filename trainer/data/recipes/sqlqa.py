"""A question and a CREATE TABLE to SQL between two special tokens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from trainer.data.recipes.base import Recipe, Row, Split
from trainer.data.recipes.files import hold_back, jsonl_of


def _rows(folder: Path, split: Split) -> Iterator[Row]:
    rows = list(jsonl_of(folder / "sqlqa.jsonl", "question", "context", "answer"))
    for row in hold_back(rows, split):
        yield {"prompt": f"{row['context']}\n{row['question']}", "response": row["answer"]}


SQLQA = Recipe(
    "sqlqa", "a question and a table to SQL between [SQL] and [/SQL]", _rows, ("train", "test"),
    ("sql_exact", "exact_match"), added_tokens=("[SQL]", "[/SQL]"),
)  # fmt: skip
