"""Requests to an assistant: one of 150 intents, or ``oos`` (out of scope)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from trainer.data.recipes.base import Recipe, Row, Split
from trainer.data.recipes.files import json_of, malformed, shuffled

_INSTRUCTION = "Give the intent of this request, or oos if it has none: "
_KEYS = {"train": "train", "validation": "val", "test": "test"}


def _rows(folder: Path, split: Split) -> Iterator[Row]:
    file = folder / "data_full.json"
    content = json_of(file)
    try:
        labels = sorted({label for key in ("train", "oos_train") for _text, label in content[key]})
        pairs = [(text, label) for key in (_KEYS[split], f"oos_{_KEYS[split]}") for text, label in content[key]]
        rows = [{"prompt": _INSTRUCTION + text, "response": label, "labels": labels} for text, label in pairs]
    except (KeyError, TypeError, ValueError) as error:
        raise malformed(file) from error
    return iter(shuffled(rows))


CLINC150 = Recipe(
    "clinc150", "requests to an assistant: one of 150 intents, or out of scope", _rows,
    ("train", "validation", "test"), ("label_accuracy",),
)  # fmt: skip
