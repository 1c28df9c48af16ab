"""Opens text files as UTF-8, packed or not, and says in one line what is wrong with those that are not."""

from __future__ import annotations

import contextlib
import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import cast

from trainer.errors import DataError

_HEAD = 64  # bytes in which text of two bytes a character shows its zeros
_UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")


@contextlib.contextmanager
def open_text(path: Path, *, newline: str) -> Iterator[io.TextIOWrapper]:
    """The text of ``path``, unpacked where its name ends in .gz. Raises DataError, also while it is being read."""
    try:
        with open_bytes(path) as file:
            if b"\0" in file.peek(_HEAD)[:_HEAD]:
                raise _utf16(path)
            yield io.TextIOWrapper(file, encoding="utf-8-sig", newline=newline)
    except UnicodeDecodeError as error:
        raise _not_utf8(path) from error


@contextlib.contextmanager
def open_bytes(path: Path) -> Iterator[io.BufferedReader]:
    """The bytes of ``path``, unpacked where its name ends in .gz. Raises DataError, also while it is being read."""
    try:
        with cast("io.BufferedReader", gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb")) as file:
            yield file
    except FileNotFoundError as error:
        raise DataError(f"there is no data file {path}") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be unpacked: it is no whole gzip file") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


def _utf16(path: Path) -> DataError:
    return DataError(f"{path} is UTF-16, not UTF-8; convert it: iconv -f UTF-16 -t UTF-8 OLD > NEW")


def _not_utf8(path: Path) -> DataError:
    """The first byte of ``path`` that is not UTF-8, and what the file seems to be."""
    offset = 0
    with open_bytes(path) as file:
        for number, line in enumerate(file, 1):
            if number == 1 and line.startswith(_UTF16_BOMS):
                return _utf16(path)
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                at = error.start
                where = f"{path} line {number} is not UTF-8: byte 0x{line[at]:02x} at offset {offset + at}"
                return DataError(f"{where}; {_advice(line)}")
            offset += len(line)
    return DataError(f"{path} is not UTF-8; save the file as UTF-8")


def _advice(line: bytes) -> str:
    """Most files of Chinese text that are not UTF-8 are GBK, of which GB18030 is the whole."""
    try:
        text = line.decode("gb18030")
    except UnicodeDecodeError:
        return "save the file as UTF-8"
    chinese = sum("\u4e00" <= char <= "\u9fff" for char in text)
    foreign = sum(char > "\x7f" for char in text)
    if chinese < 2 or chinese < foreign / 2:
        return "save the file as UTF-8"
    return "it looks like GBK; convert it: iconv -f GB18030 -t UTF-8 OLD > NEW"
