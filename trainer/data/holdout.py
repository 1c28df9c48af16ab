"""Which rows train and which are held back. Needs neither text nor tokens, only a key of each row."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trainer.config.data import DataConfig
from trainer.errors import DataError

Indices = npt.NDArray[np.int64]
Keys = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Split:
    """Indices of rows, ascending. ``repeated`` counts rows that repeat an earlier one."""

    train: Indices
    held: Indices
    repeated: int


def split_rows(keys: Keys, usable: Indices, config: DataConfig, seed: int) -> Split:
    """Split the rows at the indices ``usable``; ``keys`` are theirs. The same for the same rows and ``seed``.

    Raises DataError where nothing would be left to train on.
    """
    first = np.sort(np.unique(keys, return_index=True)[1])
    repeated = len(usable) - len(first)
    rows = usable[first] if config.duplicates == "drop" else usable
    if config.max_rows and config.max_rows < len(rows):
        rows = rows[_drawn(len(rows), config.max_rows, f"{seed}/max_rows")]
    if isinstance(config.validation, str) or not config.validation:
        return Split(rows, rows[:0], repeated)
    count = held_count(config.validation, len(rows))
    held = np.zeros(len(rows), dtype=bool)
    held[_drawn(len(rows), count, seed)] = True
    return Split(rows[~held], rows[held], repeated)


def held_count(validation: float, rows: int) -> int:
    """How many of ``rows`` a share (below 1) or a number of rows means. Raises DataError when none is left."""
    count = int(validation) if validation >= 1 else max(1, round(validation * rows))
    if count >= rows:
        raise DataError(
            f"data.validation wants {count} of {rows} usable rows, which leaves none to train on; "
            "lower it, or set it to 0"
        )
    return count


def _drawn(rows: int, count: int, seed: int | str) -> Sequence[int]:
    return sorted(random.Random(seed).sample(range(rows), count))
