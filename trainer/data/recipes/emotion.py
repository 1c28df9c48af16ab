"""Tweets: one of four emotions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from trainer.data.recipes.base import Recipe, Row, Split
from trainer.data.recipes.files import lines_of
from trainer.errors import DataError

_INSTRUCTION = "Give the emotion of this tweet: "
_NAMES = {"train": "train", "validation": "val", "test": "test"}


def _rows(folder: Path, split: Split) -> Iterator[Row]:
    names = dict(line.split("\t", 1) for line in lines_of(folder / "mapping.txt") if "\t" in line)
    texts, labels = (lines_of(folder / f"{_NAMES[split]}_{part}.txt") for part in ("text", "labels"))
    if len(texts) != len(labels):
        raise DataError(f"{folder}: {len(texts)} lines in {_NAMES[split]}_text.txt, but {len(labels)} labels")
    for number, (text, label) in enumerate(zip(texts, labels, strict=True), 1):
        if label.strip() not in names:
            raise DataError(f"{folder / _NAMES[split]}_labels.txt line {number}: {label!r} is not in mapping.txt")
        yield {"prompt": _INSTRUCTION + text.strip(), "response": names[label.strip()], "labels": list(names.values())}


EMOTION = Recipe("emotion", "tweets: one of four emotions", _rows, ("train", "validation", "test"), ("label_accuracy",))
