"""Which rows of which sources train and which validate: one pass over the rows, and a split by their keys.

Errors in the files come up in that pass, before anything is tokenised. Knows nothing of tokens.
"""

from __future__ import annotations

import hashlib
import random
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trainer.config.data import DataConfig
from trainer.data.conversations import DroppedRow, Layout, ParsedRow, find_layout, read_row
from trainer.data.messages import key_of
from trainer.data.rows import RawRow
from trainer.data.sources import Source, find_source, find_train_source
from trainer.errors import DataError

Indices = npt.NDArray[np.int64]
Keys = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class RowSplit:
    """Indices of rows, ascending. ``repeated`` counts rows that repeat an earlier one."""

    train: Indices
    held: Indices
    repeated: int


def split_rows(keys: Keys, usable: Indices, config: DataConfig, seed: int) -> RowSplit:
    """Split the rows at the indices ``usable``; ``keys`` are theirs. The same for the same rows and ``seed``.

    Raises DataError where nothing would be left to train on.
    """
    first = np.sort(np.unique(keys, return_index=True)[1])
    repeated = len(usable) - len(first)
    rows = usable[first] if config.duplicates == "drop" else usable
    if config.max_rows and config.max_rows < len(rows):
        rows = rows[_drawn(len(rows), config.max_rows, f"{seed}/max_rows")]
    if isinstance(config.validation, str) or not config.validation:
        return RowSplit(rows, rows[:0], repeated)
    count = held_count(config.validation, len(rows))
    held = np.zeros(len(rows), dtype=bool)
    held[_drawn(len(rows), count, seed)] = True
    return RowSplit(rows[~held], rows[held], repeated)


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


Progress = Callable[[str, int, int | None], None]
"""Told what is being done, how many rows it has been done to, and of how many in all, where that is known."""
PROGRESS_EVERY = 256  # rows between two reports


@dataclass(frozen=True)
class Survey:
    """What a source holds. ``usable`` are indices of rows, ascending, ``keys`` equal for equal conversations."""

    source: Source
    layout: Layout
    rows: int
    usable: Indices
    keys: Keys
    dropped: Counter[str]

    def keys_of(self, indices: Indices) -> Keys:
        """The keys of the rows at ``indices``, all of them usable."""
        return self.keys[np.searchsorted(self.usable, indices)]


def survey(source: Source, config: DataConfig, progress: Progress | None = None) -> Survey:
    """Read ``source`` once. Raises DataError for the first row that is broken, and when none is usable."""
    layout: Layout | None = None
    usable, keys = array("q"), array("Q")
    dropped: Counter[str] = Counter()
    count = 0
    for row in source.rows():
        layout = layout or _layout_of(row, config)
        try:
            keys.append(_conversation_key(read_row(row, layout, config)))
            usable.append(count)
        except DroppedRow as reason:
            dropped[str(reason)] += 1
        count += 1
        if progress and count % PROGRESS_EVERY == 0:
            progress(f"reading {source.name}", count, None)
    if layout is None:
        raise DataError(f"{source.name} is empty: it holds no rows")
    if not usable:
        raise nothing_left(source.name, dropped)
    return Survey(source, layout, count, np.frombuffer(usable, np.int64), np.frombuffer(keys, np.uint64), dropped)


def _layout_of(row: RawRow, config: DataConfig) -> Layout:
    layout = find_layout(config, row)
    if config.too_long == "split" and layout.shape != "text":
        raise DataError(f"data.too_long: split is for the shape text; {layout.shape} rows can be dropped or cut")
    return layout


def rows_at(found: Survey, indices: Indices, config: DataConfig) -> Iterator[tuple[RawRow, ParsedRow]]:
    """The rows at ``indices``, which ascend and are usable, read again."""
    wanted = iter(indices.tolist())
    next_index = next(wanted, None)
    for number, row in enumerate(found.source.rows()):
        if next_index is None:
            return
        if number == next_index:
            yield row, read_row(row, found.layout, config)
            next_index = next(wanted, None)


def nothing_left(name: str, dropped: Counter[str]) -> DataError:
    """Every row of ``name`` was dropped."""
    return DataError(f"{name} leaves nothing to learn from: {describe_dropped(dropped)}")


def describe_dropped(dropped: dict[str, int]) -> str:
    """``dropped`` in words: ``3 rows: empty response; 1 row: ...``."""
    most_first = sorted(dropped.items(), key=lambda item: (-item[1], item[0]))
    return "; ".join(f"{count} row{'s' if count > 1 else ''}: {reason}" for reason, count in most_first)


def _conversation_key(reading: ParsedRow) -> int:
    digest = hashlib.blake2b(key_of(reading.conversation), digest_size=8)
    return int.from_bytes(digest.digest(), "little")


_PROGRESS_SECONDS = 10.0


def progress_messages(tell: Callable[[str], None], seconds: float = _PROGRESS_SECONDS) -> Progress:
    """A Progress that ``tell``s how far it is, at most once in ``seconds``; short work stays silent."""
    last = time.monotonic()

    def progress(what: str, done: int, total: int | None) -> None:
        nonlocal last
        if time.monotonic() - last >= seconds:
            last = time.monotonic()
            tell(f"{what}: {done:,} rows" if total is None else f"{what}: {done:,} of {total:,} rows")

    return progress


@dataclass(frozen=True)
class DatasetSplits:
    """The rows of one run: ``found`` holds those to train on, and those to validate on unless ``held_from`` does."""

    config: DataConfig
    found: Survey
    held_from: Survey | None
    split: RowSplit

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


def find_splits(config: DataConfig, seed: int, progress: Progress | None = None) -> DatasetSplits:
    """Read the sources of ``config`` once, and split them. Raises DataError in one line."""
    held = find_source(config, "validation")
    found = survey(find_train_source(config), config, progress)
    held_from = survey(held, config, progress) if held else None
    return DatasetSplits(config, found, held_from, split_rows(found.keys, found.usable, config, seed))
