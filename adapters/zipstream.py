"""Reads a zip file entry by entry with bounded memory. Knows nothing of packages."""

from __future__ import annotations

import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

from adapters.errors import PackageError
from adapters.names import shown
from adapters.tarstream import Entry

_END_BYTES = 22  # of the end record, without its comment
_ENTRY_BYTES = 4096  # allowed in the central directory for one entry, on average
_ENCRYPTED = 0x1
# What the standard library raises for malformed files; RuntimeError includes NotImplementedError, OSError bad seeks.
_DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, RuntimeError, ValueError)


def iter_zip(file: BinaryIO, max_files: int, count_bytes: Callable[[int], None]) -> Iterator[Entry]:
    """The files and folders of the zip ``file``; every unpacked byte is passed to ``count_bytes`` first.

    Raises PackageError for links, encrypted entries, unusual compression, and malformed or truncated files.
    """
    _check_directory(file, max_files)
    try:
        opened = zipfile.ZipFile(file)
    except _DAMAGE as error:
        raise PackageError("the archive is damaged: its list of files cannot be read") from error
    for info in opened.infolist():
        _check_entry(info)
        yield Entry(info.filename, info.file_size, info.is_dir(), _reader(opened, info, count_bytes))


def _check_directory(file: BinaryIO, max_files: int) -> None:
    """Refuse a central directory that would fill memory: the standard library reads it whole."""
    size = file.seek(0, 2)
    file.seek(max(0, size - (1 << 16) - _END_BYTES))
    tail = file.read()
    file.seek(0)
    at = len(tail) - _END_BYTES if tail[-_END_BYTES:].startswith(b"PK\5\6") else tail.rfind(b"PK\5\6")
    if at < 0 or len(tail) - at < _END_BYTES:
        raise PackageError("the archive is truncated: it has no end record")
    if tail[max(0, at - 20) : at].startswith(b"PK\6\7"):
        raise PackageError("the archive is a zip64 file; pack it as .tar or .tar.gz instead")
    entries = int.from_bytes(tail[at + 10 : at + 12], "little")
    length = int.from_bytes(tail[at + 12 : at + 16], "little")
    if entries > max_files:
        raise PackageError(f"the archive holds more than {max_files} files")
    if length > max_files * _ENTRY_BYTES:
        raise PackageError("the archive's list of files is too long")


def _check_entry(info: zipfile.ZipInfo) -> None:
    mode = info.external_attr >> 16
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise PackageError(f"the archive entry {shown(info.filename)} is a link, device or other special file")
    if info.flag_bits & _ENCRYPTED:
        raise PackageError(f"the archive entry {shown(info.filename)} is encrypted")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise PackageError(f"the archive entry {shown(info.filename)} uses a compression other than deflate")


def _reader(
    opened: zipfile.ZipFile, info: zipfile.ZipInfo, count_bytes: Callable[[int], None]
) -> Callable[[], Iterator[bytes]]:
    def chunks() -> Iterator[bytes]:
        try:
            with opened.open(info) as member:
                while chunk := member.read(1 << 20):
                    count_bytes(len(chunk))
                    yield chunk
        except _DAMAGE as error:
            raise PackageError(f"the archive is damaged: {shown(info.filename)} cannot be unpacked") from error

    return chunks
