"""Which rows of which sources train, and which validate. Knows nothing of tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from trainer.config.data import DataConfig
from trainer.data.holdout import Indices, Split, split_rows
from trainer.data.sources import find_source, find_train_source
from trainer.data.survey import Progress, Survey, survey


@dataclass(frozen=True)
class Parts:
    """The rows of one run: ``found`` holds those to train on, and those to validate on unless ``held_from`` does."""

    config: DataConfig
    found: Survey
    held_from: Survey | None
    split: Split

    @property
    def surveys(self) -> list[Survey]:
        """The sources of the run."""
        return [self.found] if self.held_from is None else [self.found, self.held_from]

    @property
    def validating(self) -> tuple[Survey, Indices]:
        """The rows to validate on; there may be none."""
        return (self.found, self.split.held) if self.held_from is None else (self.held_from, self.held_from.usable)

    @property
    def overlapping(self) -> Indices:
        """The rows to validate on that are rows to train on as well."""
        found, held = self.validating
        return held[np.isin(found.keys_of(held), self.found.keys_of(self.split.train))]

    def by_survey(self) -> Iterator[tuple[Survey, dict[str, Indices]]]:
        """Every source with the rows that ``train`` and ``validation`` use of it."""
        if self.held_from is None:
            held = {"validation": self.split.held} if self.config.validation else {}
            yield self.found, {"train": self.split.train, **held}
        else:
            yield self.found, {"train": self.split.train}
            yield self.held_from, {"validation": self.held_from.usable}


def find_parts(config: DataConfig, seed: int, progress: Progress | None = None) -> Parts:
    """Read the sources of ``config`` once, and split them. Raises DataError in one line."""
    held = find_source(config, "validation")
    found = survey(find_train_source(config), config, progress)
    held_from = survey(held, config, progress) if held else None
    return Parts(config, found, held_from, split_rows(found.keys, found.usable, config, seed))
