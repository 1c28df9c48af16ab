"""Micro F1 of the entities in answers of the form ``{type: [text, ...]}``.

An entity is right when its type and its text are; each counts as often as it is listed. F1 = 2 hits / (found + wanted),
all three added up over the rows, as conlleval does (Tjong Kim Sang & De Meulder 2003), by text instead of by position.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from trainer.evaluation.metrics.base import Array, Case, Metric, micro_f1, overlap_statistics
from trainer.evaluation.metrics.json_valid import NotJson, parse_json

Entity = tuple[str, str]


def entities_of(text: str) -> Counter[Entity]:
    """The entities of an answer: (type, text), each as often as it is there; none where it is not such JSON."""
    try:
        parsed = parse_json(text)
    except NotJson:
        return Counter()
    if not isinstance(parsed, dict):
        return Counter()
    listed = ((kind, texts if isinstance(texts, list) else [texts]) for kind, texts in parsed.items())
    return Counter((kind, str(text).strip()) for kind, texts in listed for text in texts)


def _statistics(cases: Sequence[Case]) -> Array:
    return overlap_statistics(cases, entities_of)


ENTITY_F1 = Metric(
    "entity_f1",
    "micro F1 of (type, text) in JSON answers",
    _statistics,
    micro_f1,
    per_row=False,
    excluded="no reference has entities",
)
