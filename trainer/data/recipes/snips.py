"""Requests to a voice assistant: intent and slots as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainer.data.recipes.base import Recipe, Row, Split
from trainer.data.recipes.files import json_of, malformed, shuffled

_INSTRUCTION = "Give the intent and slots of this request as JSON: "


def _rows(folder: Path, split: Split) -> Iterator[Row]:
    rows = []
    for intent in sorted(path.name for path in folder.iterdir() if path.is_dir()):
        file = folder / intent / (f"train_{intent}_full.json" if split == "train" else f"validate_{intent}.json")
        content = json_of(file, errors="replace")  # two of the published files are not UTF-8 throughout
        try:
            rows += [_row(intent, item["data"]) for item in content[intent]]
        except (KeyError, TypeError, AttributeError) as error:
            raise malformed(file) from error
    if not rows:
        raise malformed(folder)
    return iter(shuffled(rows))


def _row(intent: str, spans: list[dict[str, Any]]) -> Row:
    text = "".join(span["text"] for span in spans).strip()
    slots: dict[str, str] = {}
    for span in spans:
        if "entity" in span:
            slots.setdefault(span["entity"], span["text"].strip())
    response = json.dumps({"intent": intent, "slots": slots}, ensure_ascii=False)
    return {"prompt": _INSTRUCTION + text, "response": response}


SNIPS = Recipe(
    "snips", "requests to an assistant: intent and slots as JSON", _rows, ("train", "test"),
    ("slot_f1", "exact_match", "json_valid"),
)  # fmt: skip
