"""One pass over the rows of a source before they are used: what shape they have, which are usable, which repeat.

Errors in the files come up here, before anything is tokenised.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from trainer.config.data import DataConfig
from trainer.data.conversations import DroppedRow, Reading, read_row
from trainer.data.holdout import Indices, Keys
from trainer.data.messages import key_of
from trainer.data.rows import RawRow
from trainer.data.shapes import Layout, find_layout
from trainer.data.sources import Source
from trainer.errors import DataError

Progress = Callable[[str, int, int | None], None]
"""Told what is being done, how many rows it has been done to, and of how many in all, where that is known."""
EVERY = 256  # rows between two reports


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
            keys.append(_key(read_row(row, layout, config)))
            usable.append(count)
        except DroppedRow as reason:
            dropped[str(reason)] += 1
        count += 1
        if progress and count % EVERY == 0:
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


def rows_at(found: Survey, indices: Indices, config: DataConfig) -> Iterator[tuple[RawRow, Reading]]:
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


def _key(reading: Reading) -> int:
    digest = hashlib.blake2b(key_of(reading.conversation), digest_size=8)
    return int.from_bytes(digest.digest(), "little")
