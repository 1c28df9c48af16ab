"""What a model says of texts, as text: metrics of answers score classes, tags, numbers and places alike."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.data.encoding import IGNORED
from trainer.data.tags import OUTSIDE, read_tags
from trainer.pooling.labels import LabelSet
from trainer.pooling.model import unit

Answers = tuple[list[str], list[str]]
"""What the model says, and what is wanted, of each row."""


@dataclass(frozen=True)
class Score:
    """Metrics of ``names``, by ``score``, of answers and of what is wanted."""

    names: tuple[str, ...]
    score: Callable[[Sequence[str], Sequence[str]], dict[str, float]]

    def __call__(self, said: Sequence[str], wanted: Sequence[str]) -> dict[str, float]:
        """Each metric by its name."""
        return self.score(said, wanted)


class Said:
    """Gathers outputs of the model, batch by batch, as answers."""

    def __init__(self, labels: LabelSet | None) -> None:
        self._labels = labels
        self._said: list[str] = []
        self._wanted: list[str] = []
        self._firsts: list[Tensor] = []
        self._others: list[Tensor] = []

    def add(self, out: Tensor, batch: dict[str, Tensor]) -> None:
        """The outputs of ``batch``."""
        labels = batch["labels"]
        if "places" in batch:
            self._tags(out.argmax(-1).tolist(), batch)
        elif len(out) > len(labels):
            firsts, others = unit(out[: len(labels)]), unit(out[len(labels) :])
            if "keys" not in batch:
                self._numbers((firsts * others).sum(-1), labels)
                return
            self._firsts.append(firsts.cpu())
            self._others.append(others.cpu())
        elif self._labels is None:
            self._numbers(out[:, 0], labels)
        elif self._labels.several:
            self._said += [self._names(row.nonzero()[:, 0]) for row in out > 0]  # a probability above a half
            self._wanted += [self._names(row.nonzero()[:, 0]) for row in labels]
        else:
            self._said += [self._labels.names[i] for i in out.argmax(-1).tolist()]
            self._wanted += [self._labels.names[i] for i in labels.tolist()]

    def answers(self) -> Answers:
        """Of all rows. Texts that belong together are answered by their place among all, from 1, which is wanted."""
        if not self._firsts:
            return self._said, self._wanted
        firsts = torch.cat(self._firsts)
        seconds = torch.cat([other[: len(first)] for first, other in zip(self._firsts, self._others, strict=True)])
        rest = [other[len(first) :] for first, other in zip(self._firsts, self._others, strict=True)]
        places = ranks(firsts, seconds, torch.cat([seconds, *rest]))
        return list(map(str, places)), ["1"] * len(places)

    def _tags(self, said: list[list[int]], batch: dict[str, Tensor]) -> None:
        assert self._labels is not None, "tags have names"
        names = self._labels.names
        for row, places, tags in zip(said, batch["places"].tolist(), batch["tags"].tolist(), strict=True):
            wanted = [names[tag] for tag in tags if tag != IGNORED]
            found = tags_at(places[: len(wanted)], [names[tag] for tag in row])
            self._said.append(json.dumps(found, ensure_ascii=False))
            self._wanted.append(json.dumps(wanted, ensure_ascii=False))

    def _numbers(self, said: Tensor, wanted: Tensor) -> None:
        self._said += map(repr, said.tolist())
        self._wanted += map(repr, wanted.tolist())

    def _names(self, ids: Tensor) -> str:
        assert self._labels is not None, "only classes have names"
        return json.dumps(sorted(self._labels.names[i] for i in ids.tolist()), ensure_ascii=False)


def tags_at(places: Sequence[int], tokens: Sequence[str]) -> list[str]:
    """Tags of words by ``tokens``, those of tokens; ``places`` are those where words begin (PooledExample)."""
    shares = [place >= 0 and place == before for before, place in zip([-1, *places], places, strict=False)]
    return read_tags(
        None if shared else OUTSIDE if place < 0 else tokens[place]
        for place, shared in zip(places, shares, strict=True)
    )


_AT_ONCE = 512
_SAME = 1e-6  # of cosines: the text itself, given twice


def ranks(firsts: Tensor, seconds: Tensor, others: Tensor) -> list[int]:
    """The place, from 1, of each of ``seconds`` among ``others``, the nearest to its first text standing first.

    Shape: ``firsts`` and ``seconds`` [n, width], ``others`` [m, width], all of length 1. A text that lies where the
    second one does is taken for the same.
    """
    out: list[int] = []
    for at in range(0, len(firsts), _AT_ONCE):
        first, second = firsts[at : at + _AT_ONCE], seconds[at : at + _AT_ONCE]
        own = (first * second).sum(-1, keepdim=True)
        out += ((first @ others.T > own + _SAME).sum(-1) + 1).tolist()
    return out
