"""Metrics of answers with a form: JSON, slots and entities in it, and lines of triples.

``json_valid``: the share of answers that are one JSON value (RFC 8259) and nothing else.

``slot_f1``: micro F1 of the slots in answers of the form ``{"intent": ..., "slots": {name: value or list of values}}``.
A slot is right when intent, name and value are (values compared without case). F1 = 2 hits / (found + wanted), all
three added up over the rows, as conlleval does for spans (Tjong Kim Sang & Buchholz 2000). An answer that is not such
JSON has found nothing.

``entity_f1``: micro F1 of the entities in answers of the form ``{type: [text, ...]}``. An entity is right when its type
and its text are; each counts as often as it is listed. F1 as above, as conlleval does (Tjong Kim Sang & De Meulder
2003), by text instead of by position.

``triple_f1``: the mean over rows of the F1 between two sets of triples, one triple a line as
``subject_relation_object``. Only lines with exactly three fields between underscores count; a row without a triple in
common has F1 0. It is the score of the ChatGLM-Finetuning comparison (github.com/liucongg/ChatGLM-Finetuning, predict
scripts).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any, NoReturn

from trainer.evaluation.metrics.metric import (
    Array,
    Case,
    Metric,
    as_statistics,
    mean_metric,
    micro_f1,
    overlap_statistics,
    ratio,
)


class NotJson(Exception):  # noqa: N818  (an outcome that is counted)
    """A text is no JSON value."""


def parse_json(text: str) -> Any:
    """The value in ``text``. Raises NotJson; NaN and Infinity, which Python would take, are not JSON."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise NotJson from error


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)


def is_json(case: Case) -> float:
    """1 where the answer is JSON, else 0."""
    try:
        parse_json(case.answer)
    except NotJson:
        return 0.0
    return 1.0


JSON_VALID = mean_metric("json_valid", "answers that are one valid JSON value", is_json)
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


def _slot_statistics(cases: Sequence[Case]) -> Array:
    return overlap_statistics(cases, slots_of)


SLOT_F1 = Metric(
    "slot_f1",
    "micro F1 of (intent, slot, value) in JSON answers",
    _slot_statistics,
    micro_f1,
    per_row=False,
    excluded="no reference has slots",
)
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


def _entity_statistics(cases: Sequence[Case]) -> Array:
    return overlap_statistics(cases, entities_of)


ENTITY_F1 = Metric(
    "entity_f1",
    "micro F1 of (type, text) in JSON answers",
    _entity_statistics,
    micro_f1,
    per_row=False,
    excluded="no reference has entities",
)
_FIELDS = 3


def triples_of(text: str) -> set[str]:
    """The lines of ``text`` that are triples."""
    return {line for line in text.split("\n") if len(line.split("_")) == _FIELDS}


def set_f1(case: Case) -> float:
    """F1 between the triples of the answer and of the reference."""
    found, wanted = triples_of(case.answer), triples_of(case.reference)
    return 2 * len(found & wanted) / (len(found) + len(wanted)) if found & wanted else 0.0


def _triple_statistics(cases: Sequence[Case]) -> Array:
    if not any(triples_of(case.reference) for case in cases):
        return as_statistics([None] * len(cases), width=2)  # rows of another kind: nothing right could score above 0
    return as_statistics([(set_f1(case), 1.0) for case in cases], width=2)


TRIPLE_F1 = Metric(
    "triple_f1",
    "mean over rows of the set F1 of subject_relation_object lines",
    _triple_statistics,
    ratio,
    excluded="no reference has triples",
)
