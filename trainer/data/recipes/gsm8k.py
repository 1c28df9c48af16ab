"""Grade-school mathematics; the solution ends with ``#### `` and the number."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from trainer.data.recipes.base import Recipe, Row, Split
from trainer.data.recipes.files import jsonl_of
from trainer.errors import DataError


def _rows(folder: Path, split: Split) -> Iterator[Row]:
    file = folder / f"{split}.jsonl"
    for number, row in enumerate(jsonl_of(file, "question", "answer"), 1):
        _solution, mark, answer = row["answer"].rpartition("#### ")
        if not mark:
            raise DataError(f"{file} row {number}: the answer does not end with '#### ' and a number")
        yield {"prompt": row["question"], "response": row["answer"], "answer": answer.strip().replace(",", "")}


GSM8K = Recipe("gsm8k", "grade-school mathematics", _rows, ("train", "test"), ("gsm8k_accuracy",))
