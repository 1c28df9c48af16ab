"""Sequences that lie on disk, so that data larger than memory trains.

The file has no name: it is gone with the process, however that ends. It is read at places, not mapped: what was read
does not stay in the process's memory.
"""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from typing import IO, Generic, TypeVar, overload

import msgspec
import numpy as np

from trainer.data.encoding import IGNORED, Example
from trainer.data.messages import TokenQuestion
from trainer.errors import DataError

_BUFFER = 1 << 20
_ID = np.dtype("<i4")
_MASK = np.dtype("<u1")
_TOKEN_BYTES = _ID.itemsize + _MASK.itemsize
_questions = msgspec.msgpack.Decoder(TokenQuestion)

Item = TypeVar("Item")


class DiskList:
    """Byte strings on disk, by index. Grows by ``append`` until it is first read."""

    def __init__(self) -> None:
        self._file: IO[bytes] = tempfile.TemporaryFile(buffering=_BUFFER, prefix="hotswap-")  # noqa: SIM115
        weakref.finalize(self, _close, self._file)
        self._ends = np.zeros(1024, dtype=np.int64)
        self._count = 0
        self._flushed = False

    def append(self, data: bytes) -> None:
        """Add ``data`` at the end. Raises DataError when the disk is full."""
        try:
            self._file.write(data)
        except OSError as error:
            raise _full(error) from error
        if self._count == len(self._ends):
            self._ends = np.concatenate([self._ends, np.zeros_like(self._ends)])
        self._ends[self._count] = (self._ends[self._count - 1] if self._count else 0) + len(data)
        self._count += 1

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> bytes:
        if not self._flushed:
            try:
                self._file.flush()
            except OSError as error:
                raise _full(error) from error
            self._flushed = True
        start = int(self._ends[index - 1]) if index else 0
        return os.pread(self._file.fileno(), int(self._ends[index]) - start, start)

    def sizes(self) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Bytes of each item."""
        return np.diff(self._ends[: self._count], prepend=0)


def _close(file: IO[bytes]) -> None:
    with contextlib.suppress(OSError):  # what is left in its buffer, when the disk is full
        file.close()


class DiskSequence(Sequence[Item], Generic[Item]):
    """Items of a DiskList. A slice of it is a tuple."""

    def __init__(self, items: DiskList | None = None) -> None:
        self._items = items if items is not None else DiskList()

    def append(self, item: Item) -> None:
        """Add ``item`` at the end. Raises DataError when the disk is full."""
        self._items.append(self._encode(item))

    def __len__(self) -> int:
        return len(self._items)

    @overload
    def __getitem__(self, index: int) -> Item: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Item]: ...

    def __getitem__(self, index: int | slice) -> Item | Sequence[Item]:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(len(self))))
        at = index + len(self) if index < 0 else index
        if not 0 <= at < len(self):
            raise IndexError(index)
        return self._decode(self._items[at])

    def __iter__(self) -> Iterator[Item]:
        return (self[i] for i in range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or len(other) != len(self):
            return False
        return all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def _encode(self, item: Item) -> bytes:
        raise NotImplementedError

    def _decode(self, data: bytes) -> Item:
        raise NotImplementedError


class Examples(DiskSequence[Example]):
    """Examples: token ids as int32, then one byte a token that says whether it is learned."""

    @property
    def lengths(self) -> list[int]:
        """Tokens of each example, without reading them."""
        sizes: list[int] = (self._items.sizes() // _TOKEN_BYTES).tolist()
        return sizes

    def _encode(self, item: Example) -> bytes:
        mask = np.asarray(item.labels, dtype=_ID) != IGNORED
        data: bytes = np.asarray(item.input_ids, dtype=_ID).tobytes() + mask.astype(_MASK).tobytes()
        return data

    def _decode(self, data: bytes) -> Example:
        count = len(data) // _TOKEN_BYTES
        ids = np.frombuffer(data, _ID, count)
        mask = np.frombuffer(data, _MASK, count, offset=count * _ID.itemsize)
        return Example(tuple(ids.tolist()), tuple(np.where(mask, ids, IGNORED).tolist()))


def lengths_of(examples: Sequence[Example]) -> list[int]:
    """Tokens of each example; those on disk are not read for it."""
    return examples.lengths if isinstance(examples, Examples) else [len(example) for example in examples]


class TokenQuestions(DiskSequence[TokenQuestion]):
    """Validation rows to be answered."""

    def _encode(self, item: TokenQuestion) -> bytes:
        data: bytes = msgspec.msgpack.encode(item)
        return data

    def _decode(self, data: bytes) -> TokenQuestion:
        return _questions.decode(data)


def _full(error: OSError) -> DataError:
    folder = tempfile.gettempdir()
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DataError(f"the disk is full: the tokens are kept in {folder}; make room, or point TMPDIR elsewhere")
    return DataError(f"the tokens cannot be kept in {folder}: {error.strerror}")
