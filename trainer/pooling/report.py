"""How each class fared among the rows held back: for people, and as JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from trainer.files import write_json
from trainer.pooling.answers import Answers
from trainer.pooling.pooled_data import PooledData
from trainer.tables import aligned

_SHOWN = 10


def _names(text: str, data: PooledData) -> list[str]:
    assert data.labels is not None, "only classes have names"
    return list(json.loads(text)) if data.labels.several else [text]


def by_class(data: PooledData, answers: Answers) -> dict[str, dict[str, float]]:
    """Of each class: rows trained on, rows held back, how often it was said, how often rightly, and the F1 of that."""
    assert data.labels is not None, "only classes have names"
    wanted: Counter[str] = Counter()
    said: Counter[str] = Counter()
    hits: Counter[str] = Counter()
    for answer, reference in zip(*answers, strict=True):
        ours, theirs = _names(answer, data), _names(reference, data)
        said.update(ours)
        wanted.update(theirs)
        hits.update(set(ours) & set(theirs))
    return {
        name: {
            "trained": data.counts[name],
            "rows": wanted[name],
            "said": said[name],
            "right": hits[name],
            "precision": hits[name] / max(1, said[name]),
            "recall": hits[name] / max(1, wanted[name]),
            "f1": 2 * hits[name] / max(1, said[name] + wanted[name]),
        }
        for name in data.labels.names
    }


def write_label_report(path: Path, data: PooledData, answers: Answers) -> None:
    """Write ``by_class``, and which classes were taken for which, to ``path``."""
    mistaken = Counter((wanted, said) for said, wanted in zip(*answers, strict=True) if said != wanted)
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
