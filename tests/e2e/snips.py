"""The snips data (utterance to intent and slots) as prompt and JSON completion, and its scores."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

DATA = Path(__file__).parents[3] / "shared" / "data" / "snips"
INSTRUCTION = "Give the intent and slots of this request as JSON: "


def load(split: str) -> list[dict[str, str]]:
    """Rows of ``train`` (full) or ``validate`` of all seven intents, shuffled once."""
    rows = []
    for folder in sorted(p for p in DATA.iterdir() if p.is_dir()):
        name = f"train_{folder.name}_full.json" if split == "train" else f"validate_{folder.name}.json"
        content = json.loads((folder / name).read_bytes().decode("utf-8", errors="replace"))
        rows += [_row(folder.name, item["data"]) for item in content[folder.name]]
    random.Random(0).shuffle(rows)
    return rows


def _row(intent: str, spans: list[dict[str, str]]) -> dict[str, str]:
    text = "".join(span["text"] for span in spans).strip()
    slots: dict[str, str] = {}
    for span in spans:
        if "entity" in span:
            slots.setdefault(span["entity"], span["text"].strip())
    answer = json.dumps({"intent": intent, "slots": slots}, ensure_ascii=False)
    return {"prompt": INSTRUCTION + text, "completion": answer}


def scores(answers: list[str], rows: list[dict[str, str]]) -> dict[str, float]:
    """JSON exact match, share of valid JSON, and micro F1 over (intent, slot, value)."""
    exact = valid = 0
    hits = found = wanted = 0
    for answer, row in zip(answers, rows, strict=True):
        got, want = _parse(answer), json.loads(row["completion"])
        valid += got is not None
        exact += got == want
        a, b = _slots(got), _slots(want)
        hits += sum((a & b).values())
        found += sum(a.values())
        wanted += sum(b.values())
    f1 = 2 * hits / (found + wanted) if found + wanted else 0.0
    return {"json_exact_match": exact / len(rows), "valid_json": valid / len(rows), "slot_f1": f1}


def _parse(answer: str) -> Any:
    try:
        return json.loads(answer.strip())
    except json.JSONDecodeError:
        return None


def _slots(parsed: Any) -> Counter[tuple[str, str, str]]:
    if not isinstance(parsed, dict) or not isinstance(parsed.get("slots"), dict):
        return Counter()
    intent = str(parsed.get("intent"))
    return Counter((intent, str(name), str(value).lower()) for name, value in parsed["slots"].items())
