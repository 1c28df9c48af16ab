"""Named entities in Chinese résumés, as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from trainer.data.recipes.base import Recipe, Row, Split
from trainer.data.recipes.tags import entities_as_json, tagged_sentences

_INSTRUCTION = "找出下面简历文本中的实体，用JSON回答："
_FILES = {"train": "train.char.bmes", "validation": "dev.char.bmes", "test": "test.char.bmes"}


def _rows(folder: Path, split: Split) -> Iterator[Row]:
    for characters, entities in tagged_sentences(folder / _FILES[split]):
        yield {"prompt": _INSTRUCTION + "".join(characters), "response": entities_as_json(entities, "")}


RESUME_NER = Recipe(
    "resume_ner", "named entities in Chinese résumés, as JSON", _rows, ("train", "validation", "test"), ("entity_f1",)
)
