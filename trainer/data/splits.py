"""Which rows of which sources train and which validate: one pass over the rows, and a split by their keys.

Errors in the files come up in that pass. A RowReader says what a row is, and which of them are equal; knows nothing of
tokens itself.
"""

from __future__ import annotations

import hashlib
import random
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from trainer.config.data import DataConfig
from trainer.data.conversations import DroppedRow
from trainer.data.rows import RawRow
from trainer.data.sources import Source, find_source, find_train_source
from trainer.errors import DataError
from trainer.progress import LINE_SECONDS, Throttle
from trainer.recipes.recipe import Split
from trainer.tables import counted

Indices = npt.NDArray[np.int64]
Keys = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class RowSplit:
    """Indices of rows, ascending. ``repeated`` counts rows that repeat an earlier one.

    ``redrawn``: none of the rows to validate on that were drawn first could be used.
    """

    train: Indices
    validation: Indices
    repeated: int
    redrawn: bool = False


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
    held_back = np.zeros(len(rows), dtype=bool)
    held_back[_drawn(len(rows), count, seed)] = True
    return RowSplit(rows[~held_back], rows[held_back], repeated)


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


T = TypeVar("T")


class RowReader(Protocol[T]):
    """What the rows of one source are to a kind of training."""

    def read(self, row: RawRow) -> T:
        """What ``row`` comes to. Raises DataError where it is broken, DroppedRow where it cannot be used."""
        ...

    def key(self, value: T, /) -> bytes:
        """Bytes that are equal for rows which say the same."""
        ...


Reader = TypeVar("Reader", bound=RowReader[Any])
Reader_co = TypeVar("Reader_co", bound=RowReader[Any], covariant=True)


@dataclass(frozen=True)
class Survey(Generic[Reader_co]):
    """What a source holds. ``usable`` are indices of rows, ascending, ``keys`` equal for equal ones by ``reader``."""

    source: Source
    reader: Reader_co
    rows: int
    usable: Indices
    keys: Keys
    dropped: Counter[str]

    def places(self, indices: Indices) -> Indices:
        """Where the rows at ``indices`` stand among the usable ones, which they are."""
        return np.searchsorted(self.usable, indices)

    def keys_of(self, indices: Indices) -> Keys:
        """The keys of the rows at ``indices``, all of them usable."""
        return self.keys[self.places(indices)]


def survey(source: Source, reader: Reader, progress: Progress | None = None, part: Split = "train") -> Survey[Reader]:
    """Read ``source`` once. Raises DataError for the first row that is broken, and when none is usable for ``part``."""
    usable, keys = array("q"), array("Q")
    dropped: Counter[str] = Counter()
    count = 0
    for row in source.rows():
        try:
            keys.append(_key_number(reader.key(reader.read(row))))
            usable.append(count)
        except DroppedRow as reason:
            dropped[str(reason)] += 1
        count += 1
        if progress and count % PROGRESS_EVERY == 0:
            progress(f"reading {source.name}", count, None)
    if not count:
        raise DataError(f"{source.name} is empty: it holds no rows")
    if not usable:
        raise nothing_left(source.name, dropped, part)
    return Survey(source, reader, count, np.frombuffer(usable, np.int64), np.frombuffer(keys, np.uint64), dropped)


def rows_at(found: Survey[RowReader[T]], indices: Indices) -> Iterator[tuple[RawRow, T]]:
    """The rows at ``indices``, which ascend and are usable, read again."""
    wanted = iter(indices.tolist())
    next_index = next(wanted, None)
    for number, row in enumerate(found.source.rows()):
        if next_index is None:
            return
        if number == next_index:
            yield row, found.reader.read(row)
            next_index = next(wanted, None)


_WANTED = {
    "train": ("learn from", ""),
    "validation": ("validate on", "; give other rows, or data.validation: 0 to train without"),
    "test": ("ask", ""),
}


def nothing_left(name: str, dropped: Counter[str], part: Split) -> DataError:
    """Every row of ``name`` that ``part`` would use was dropped."""
    wanted, advice = _WANTED[part]
    return DataError(f"{name} leaves nothing to {wanted}: {describe_dropped(dropped)}{advice}")


def describe_dropped(dropped: dict[str, int]) -> str:
    """``dropped`` in words: ``3 rows: empty response; 1 row: ...``."""
    most_first = sorted(dropped.items(), key=lambda item: (-item[1], item[0]))
    return "; ".join(f"{counted(count)}: {reason}" for reason, count in most_first)


def _key_number(key: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little")


def progress_messages(tell: Callable[[str], None], seconds: float = LINE_SECONDS) -> Progress:
    """A Progress that ``tell``s how far it is, at most once in ``seconds``; short work stays silent."""
    throttle = Throttle(seconds)

    def progress(what: str, done: int, total: int | None) -> None:
        if throttle.is_due():
            tell(f"{what}: {done:,} rows" if total is None else f"{what}: {done:,} of {total:,} rows")

    return progress


@dataclass(frozen=True)
class DatasetSplits(Generic[Reader_co]):
    """The rows of one run: those to train on, and those to validate on unless these have a source of their own."""

    config: DataConfig
    training_source: Survey[Reader_co]
    validation_source: Survey[Reader_co] | None
    split: RowSplit

    @property
    def surveys(self) -> list[Survey[Reader_co]]:
        """The sources of the run."""
        own = self.validation_source
        return [self.training_source] if own is None else [self.training_source, own]

    @property
    def validating(self) -> tuple[Survey[Reader_co], Indices]:
        """The rows to validate on; there may be none."""
        own = self.validation_source
        return (self.training_source, self.split.validation) if own is None else (own, own.usable)

    @property
    def overlapping(self) -> Indices:
        """The rows to validate on that are rows to train on as well."""
        found, validation = self.validating
        trained = self.training_source.keys_of(self.split.train)
        return validation[np.isin(found.keys_of(validation), trained)]

    def dropped_of(self, part: Split) -> Counter[str]:
        """Rows of the source of ``part`` that no part can use, unless they are another part's to account for."""
        own = self.validation_source
        if part == "validation":
            return own.dropped if own else Counter()
        return self.training_source.dropped

    def by_survey(self) -> Iterator[tuple[Survey[Reader_co], dict[Split, Indices]]]:
        """Every source with the rows that ``train`` and ``validation`` use of it."""
        if self.validation_source is None:
            validation: dict[Split, Indices] = {"validation": self.split.validation} if self.config.validation else {}
            yield self.training_source, {"train": self.split.train, **validation}
        else:
            yield self.training_source, {"train": self.split.train}
            yield self.validation_source, {"validation": self.validation_source.usable}


def find_splits(
    config: DataConfig, seed: int, make_reader: Callable[[], Reader], progress: Progress | None = None
) -> DatasetSplits[Reader]:
    """Read the sources of ``config`` once, each by its own reader, and split them. Raises DataError in one line."""
    own = find_source(config, "validation")
    found = survey(find_train_source(config), make_reader(), progress)
    validation_source = survey(own, make_reader(), progress, "validation") if own else None
    return DatasetSplits(config, found, validation_source, split_rows(found.keys, found.usable, config, seed))


def held_back_again(splits: DatasetSplits[Reader], seed: int, can_use: Callable[[Any], bool]) -> DatasetSplits[Reader]:
    """``splits``, with others to validate on where ``can_use`` holds for none of the rows that were drawn for it.

    Those drawn first then are rows to train on, where they are left out and counted. A source of its own has no others.
    """
    found, split = splits.training_source, splits.split
    if splits.validation_source is not None or not len(split.validation):
        return splits
    if any(can_use(value) for _row, value in rows_at(found, split.validation)):
        return splits
    usable = [i for i, (_, value) in zip(split.train, rows_at(found, split.train), strict=True) if can_use(value)]
    if len(usable) == 1:
        return splits  # which is needed to train on
    count = min(len(split.validation), max(0, len(usable) - 1))
    drawn = np.asarray([usable[i] for i in _drawn(len(usable), count, f"{seed}/again")], np.int64)
    train = np.setdiff1d(np.concatenate([split.train, split.validation]), drawn)
    return replace(splits, split=replace(split, train=train, validation=drawn, redrawn=True))


def find_validation(config: DataConfig, seed: int, make_reader: Callable[[], Reader]) -> tuple[Survey[Reader], Indices]:
    """The rows that ``find_splits`` gives to validation, without reading those to train on where that can be.

    Raises DataError, also where the configuration has no such rows.
    """
    if not config.validation:
        raise DataError("there are no validation rows (data.validation is 0)")
    own = find_source(config, "validation")
    if own is None:
        return find_splits(config, seed, make_reader).validating
    found = survey(own, make_reader(), part="validation")
    return found, found.usable
