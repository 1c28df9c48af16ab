"""How each class fared among the rows held back: for people, and as JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from trainer.data.tags import place_and_kind, spans_of, tag_of
from trainer.files import write_json
from trainer.pooling.answers import Answers
from trainer.pooling.labels import LabelSet
from trainer.pooling.pooled_data import PooledData
from trainer.tables import aligned

_SHOWN = 10


Named = tuple[str, int, int]  # a class, and of tags where: from which word to which


def _named(text: str, labels: LabelSet) -> set[Named]:
    if labels.of_spans:
        return {(span.kind, span.start, span.end) for span in spans_of(json.loads(text))}
    if labels.of_words:
        return {(tag, at, at + 1) for at, tag in enumerate(json.loads(text))}
    return {(name, 0, 0) for name in (json.loads(text) if labels.several else [text])}


def _trained(data: PooledData, labels: LabelSet) -> dict[str, int]:
    """How many rows, words or spans of each class are trained on."""
    if not labels.of_spans:
        return {name: data.counts[name] for name in labels.names}
    kinds = dict.fromkeys(found[1] for found in map(place_and_kind, labels.names) if found)
    return {kind: data.counts[tag_of(kind, first=True)] for kind in kinds}


def by_class(data: PooledData, answers: Answers) -> dict[str, dict[str, float]]:
    """Of each class: rows trained on, rows held back, how often it was said, how often rightly, and the F1 of that.

    Of tags words instead of rows, of spans spans.
    """
    assert data.labels is not None, "only classes have names"
    labels = data.labels
    wanted: Counter[str] = Counter()
    said: Counter[str] = Counter()
    hits: Counter[str] = Counter()
    for answer, reference in zip(*answers, strict=True):
        ours, theirs = _named(answer, labels), _named(reference, labels)
        for count, found in ((said, ours), (wanted, theirs), (hits, ours & theirs)):
            count.update(name for name, _, _ in found)
    return {
        name: {
            "trained": trained,
            "rows": wanted[name],
            "said": said[name],
            "right": hits[name],
            "precision": hits[name] / max(1, said[name]),
            "recall": hits[name] / max(1, wanted[name]),
            "f1": 2 * hits[name] / max(1, said[name] + wanted[name]),
        }
        for name, trained in _trained(data, labels).items()
    }


def _mistaken(data: PooledData, answers: Answers) -> Counter[tuple[str, str]]:
    """How often which was taken for which: classes of rows, tags of words."""
    pairs = list(zip(*answers, strict=True))
    if data.labels is not None and data.labels.of_words:
        pairs = [pair for ours, theirs in pairs for pair in zip(json.loads(ours), json.loads(theirs), strict=True)]
    return Counter((wanted, said) for said, wanted in pairs if said != wanted)


def write_label_report(path: Path, data: PooledData, answers: Answers) -> None:
    """Write ``by_class``, and which classes were taken for which, to ``path``."""
    mistaken = _mistaken(data, answers)
    pairs = [{"wanted": one[0], "said": one[1], "rows": count} for one, count in mistaken.most_common()]
    write_json(path, {"labels": by_class(data, answers), "mistaken": pairs})


def label_lines(data: PooledData, answers: Answers) -> Iterator[str]:
    """A table of the classes that fared worst."""
    found = by_class(data, answers)
    worst = sorted((name for name in found if found[name]["rows"]), key=lambda name: found[name]["f1"])[:_SHOWN]
    rows = [
        (name, *(f"{found[name][key]:.0f}" for key in ("trained", "rows", "said", "right")), f"{found[name]['f1']:.3f}")
        for name in worst
    ]
    yield "classes with the lowest F1:" if len(worst) < len(found) else "classes by F1:"
    yield aligned(("label", "trained", "rows", "said", "right", "f1"), rows, left=(0,))
