"""The snips data (utterance to intent and slots), by the recipe of its name, and its scores."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from tests.shared_data import SHARED
from trainer.data.recipes import RECIPES, Row, Split

DATA = SHARED / "snips"


def load(split: Split) -> list[Row]:
    """Rows of all seven intents, in the recipe's order."""
    return list(RECIPES["snips"].rows(DATA, split))


def scores(answers: list[str], rows: list[Row]) -> dict[str, float]:
    """JSON exact match, share of valid JSON, and micro F1 over (intent, slot, value)."""
    exact = valid = 0
    hits = found = wanted = 0
    for answer, row in zip(answers, rows, strict=True):
        got, want = _parse(answer), json.loads(row["response"])
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
