"""Triples in Chinese fault reports: lines of subject_relation_object."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from trainer.data.recipes.base import Recipe, Row, Split
from trainer.data.recipes.files import jsonl_of

_FILES = {"train": "spo_0.json", "test": "spo_1.json"}


def _rows(folder: Path, split: Split) -> Iterator[Row]:
    for row in jsonl_of(folder / _FILES[split], "instruction", "input", "output"):
        yield {"prompt": row["instruction"] + row["input"], "response": row["output"]}


CHATGLM_SPO = Recipe(
    "chatglm_spo", "triples in Chinese fault reports, one a line", _rows, ("train", "test"), ("triple_f1",)
)
