"""Attributes of a restaurant to a sentence (the cleaned E2E set). Without its training file, devel is trained on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from trainer.data.recipes.base import Recipe, Row, Split
from trainer.data.recipes.files import csv_of, shuffled

_INSTRUCTION = "Describe this place in a sentence: "


def _rows(folder: Path, split: Split) -> Iterator[Row]:
    train = folder / "train-fixed.no-ol.csv"
    devel = train if train.exists() else folder / "devel-fixed.no-ol.csv"
    rows = list(csv_of(devel if split == "train" else folder / "test-fixed.csv", "mr", "ref"))
    references = defaultdict(list)
    for row in rows:
        references[row["mr"]].append(row["ref"])
    for row in shuffled(rows):
        yield {"prompt": _INSTRUCTION + row["mr"], "response": row["ref"], "references": references[row["mr"]]}


E2E_NLG = Recipe(
    "e2e_nlg", "attributes of a restaurant to a sentence", _rows, ("train", "test"),
    ("bleu4", "rouge1", "rouge2", "rougeL"),
)  # fmt: skip
