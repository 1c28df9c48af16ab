"""Attributes of a garment to an advertisement, Chinese.

The published training file is large and often left away; without train.json the official development rows are split.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from trainer.data.recipes.base import Recipe, Row, Split
from trainer.data.recipes.files import hold_back, jsonl_of


def _rows(folder: Path, split: Split) -> Iterator[Row]:
    # some copies hold the official dev.json as dev0.json, beside a dev.json of a few rows
    train, dev = folder / "train.json", folder / "dev0.json"
    dev = dev if dev.exists() else folder / "dev.json"
    if train.exists():
        rows = jsonl_of(train if split == "train" else dev, "content", "summary")
    else:
        rows = hold_back(list(jsonl_of(dev, "content", "summary")), split)
    for row in rows:
        yield {"prompt": row["content"], "response": row["summary"]}


ADVERTISEGEN = Recipe(
    "advertisegen", "attributes of a garment to an advertisement, Chinese", _rows, ("train", "test"),
    ("bleu4", "rouge1", "rouge2", "rougeL"),
)  # fmt: skip
