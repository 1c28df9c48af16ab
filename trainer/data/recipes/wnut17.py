"""Named entities in posts and comments, as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from trainer.data.recipes.base import Recipe, Row, Split
from trainer.data.recipes.files import shuffled
from trainer.data.recipes.tags import entities_as_json, tagged_sentences

_INSTRUCTION = "Give the named entities in this text as JSON: "
_FILES = {"train": "wnut17train.conll", "validation": "emerging.dev.conll", "test": "emerging.test.annotated"}


def _rows(folder: Path, split: Split) -> Iterator[Row]:
    for tokens, entities in shuffled(tagged_sentences(folder / _FILES[split])):  # published by source
        yield {"prompt": _INSTRUCTION + " ".join(tokens), "response": entities_as_json(entities, " ")}


WNUT17 = Recipe(
    "wnut17", "named entities in posts and comments, as JSON", _rows, ("train", "validation", "test"), ("entity_f1",)
)
