"""Micro F1 of the slots in answers of the form ``{"intent": ..., "slots": {name: value or list of values}}``.

A slot is right when intent, name and value are (values compared without case). F1 = 2 hits / (found + wanted), all
three added up over the rows, as conlleval does for spans (Tjong Kim Sang & Buchholz 2000). An answer that is not such
JSON has found nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from trainer.evaluation.metrics.base import Array, Case, Metric, micro_f1, overlap_statistics
from trainer.evaluation.metrics.json_valid import NotJson, parse_json

Slot = tuple[str, str, str]


def slots_of(text: str) -> Counter[Slot]:
    """The slots of an answer: (intent, name, value in lower case), each as often as it is there."""
    try:
        parsed = parse_json(text)
    except NotJson:
        return Counter()
    if not isinstance(parsed, dict) or not isinstance(parsed.get("slots"), dict):
        return Counter()
    intent = str(parsed.get("intent"))
    found: Counter[Slot] = Counter()
    for name, value in parsed["slots"].items():
        for one in value if isinstance(value, list) else [value]:
            found[intent, name, str(one).strip().lower()] += 1
    return found


def _statistics(cases: Sequence[Case]) -> Array:
    return overlap_statistics(cases, slots_of)


SLOT_F1 = Metric(
    "slot_f1",
    "micro F1 of (intent, slot, value) in JSON answers",
    _statistics,
    micro_f1,
    per_row=False,
    excluded="no reference has slots",
)
