"""Questions to a bank: one of 77 intents."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from trainer.data.recipes.base import Recipe, Row, Split
from trainer.data.recipes.files import csv_of, json_of, shuffled

_INSTRUCTION = "Give the intent of this banking question: "


def _rows(folder: Path, split: Split) -> Iterator[Row]:
    labels = json_of(folder / "categories.json")
    for row in shuffled(csv_of(folder / f"{split}.csv", "text", "category")):
        yield {"prompt": _INSTRUCTION + row["text"], "response": row["category"], "labels": labels}


BANKING77 = Recipe("banking77", "questions to a bank: one of 77 intents", _rows, ("train", "test"), ("label_accuracy",))
