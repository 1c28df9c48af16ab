"""Reads tar streams and zip files entry by entry with bounded memory. Knows nothing of packages.

The standard library's tarfile keeps long names, pax headers and sparse maps in memory at whatever size a file
claims, which a small compressed upload can abuse; this one reads plain files and folders (ustar, GNU long names, pax
paths) only.
"""

from __future__ import annotations

import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from adapters.errors import PackageError
from adapters.quoting import quote

_BLOCK = 512
_MAX_EXTENDED = 64 * 1024  # bytes of one GNU long name or pax header
_MAX_CHAIN = 4  # of those before one file
_MAX_EXTENDED_IN_ALL = 1 << 20  # bytes of those in an archive: a megabyte of short records takes a fifth of a second
_BAD_PAX = "the archive is damaged: a pax header is malformed"
_REGULAR, _FOLDER, _LONG_NAME, _PAX, _PAX_GLOBAL = (b"0", b"\0", b"7"), b"5", b"L", b"x", b"g"
ReadExactly = Callable[[int], bytes]


@dataclass(frozen=True)
class ArchiveEntry:
    """A file or folder of an archive. ``chunks`` yields a file's bytes and must be used up before the next entry."""

    name: str
    size: int
    is_folder: bool
    chunks: Callable[[], Iterator[bytes]]


def looks_like_tar(block: bytes) -> bool:
    """Whether ``block`` is a sound tar header (or the end mark of an empty archive)."""
    return len(block) == _BLOCK and (not any(block) or _checksum_agrees(block))


def iter_tar(read: ReadExactly) -> Iterator[ArchiveEntry]:
    """The files and folders of a tar stream. ``read(n)`` returns n bytes, or fewer only at the end.

    Raises PackageError for links, devices and other special entries, and for malformed or truncated streams.
    """
    overrides: dict[str, str] = {}
    chain, extended = 0, 0
    while any(block := _exactly(read, _BLOCK)):
        if not _checksum_agrees(block):
            raise PackageError("the archive is damaged: a tar header has a wrong checksum")
        kind, size = block[156:157], _number(block[124:136])
        if kind in (_LONG_NAME, _PAX, _PAX_GLOBAL):
            data = _padded(read, size)
            chain, extended = chain + 1, extended + size
            if extended > _MAX_EXTENDED_IN_ALL:
                raise PackageError(f"the archive has over {_MAX_EXTENDED_IN_ALL} bytes of extended headers")
            overrides |= _extended(kind, data)
            if chain > _MAX_CHAIN:
                raise PackageError("the archive is damaged: too many extended headers before one file")
            continue
        name = overrides.get("path") or _plain_name(block)
        size = _decimal(overrides["size"]) if "size" in overrides else size
        overrides, chain = {}, 0
        is_folder = kind == _FOLDER or (kind in _REGULAR and name.endswith("/"))
        if not is_folder and kind not in _REGULAR:
            raise PackageError(f"the archive entry {quote(name)} is a link, device or other special file")
        yield from _tar_entry(read, name, 0 if is_folder else size, is_folder)


def _tar_entry(read: ReadExactly, name: str, size: int, is_folder: bool) -> Iterator[ArchiveEntry]:
    left = size

    def chunks() -> Iterator[bytes]:
        nonlocal left
        while left:
            chunk = _exactly(read, min(left, 1 << 20))
            left -= len(chunk)
            yield chunk

    yield ArchiveEntry(name, size, is_folder, chunks)
    for _ in chunks():  # what the caller did not want
        pass
    _exactly(read, -size % _BLOCK)


def _exactly(read: ReadExactly, count: int) -> bytes:
    data = read(count) if count else b""
    if len(data) != count:
        raise PackageError("the archive is truncated")
    return data


def _padded(read: ReadExactly, size: int) -> bytes:
    if size > _MAX_EXTENDED:
        raise PackageError(f"the archive has an extended header of {size} bytes; at most {_MAX_EXTENDED} are read")
    data = _exactly(read, size)
    _exactly(read, -size % _BLOCK)
    return data


def _extended(kind: bytes, data: bytes) -> dict[str, str]:
    if kind == _LONG_NAME:
        return {"path": _text(data.rstrip(b"\0"))}
    if kind == _PAX_GLOBAL:
        return {}  # comments, in practice; a global path or size makes no sense
    out: dict[str, str] = {}
    at = 0
    while at < len(data):
        space = data.find(b" ", at, at + 8)
        end = at + _decimal(_text(data[at : max(space, at)]))
        key, separator, value = data[space + 1 : end - 1].partition(b"=")
        if not (space < end - 1 < len(data)) or data[end - 1 : end] != b"\n" or not separator:
            raise PackageError(_BAD_PAX)
        if key.startswith(b"GNU.sparse"):
            raise PackageError("the archive holds sparse files; pack it again without --sparse")
        if key in (b"path", b"size"):
            out[key.decode()] = _text(value)
        at = end
    return out


def _plain_name(block: bytes) -> str:
    name, prefix = block[:100].split(b"\0")[0], block[345:500].split(b"\0")[0]
    return _text(prefix + b"/" + name if block[257:263] == b"ustar\0" and prefix else name)


def _checksum_agrees(block: bytes) -> bool:
    stored = block[148:156].strip(b" \0")
    if not stored or any(c not in b"01234567" for c in stored):
        return False
    return int(stored, 8) == sum(block) - sum(block[148:156]) + 8 * 32


def _number(field: bytes) -> int:
    if field[0] == 0x80:  # binary, for files over 8 GiB
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0")
    if any(c not in b"01234567" for c in digits):
        raise PackageError("the archive is damaged: a tar header has a malformed size")
    return int(digits or b"0", 8)


def _decimal(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise PackageError(_BAD_PAX)
    return int(text)


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise PackageError("an archive entry's name is not UTF-8") from error


_END_BYTES = 22  # of the end record, without its comment
_ENTRY_BYTES = 4096  # allowed in the central directory for one entry, on average
_ENCRYPTED = 0x1
# What the standard library raises for malformed files; RuntimeError includes NotImplementedError, OSError bad seeks.
_DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, RuntimeError, ValueError)


def iter_zip(file: BinaryIO, max_files: int, count_bytes: Callable[[int], None]) -> Iterator[ArchiveEntry]:
    """The files and folders of the zip ``file``; every unpacked byte is passed to ``count_bytes`` first.

    Raises PackageError for links, encrypted entries, unusual compression, and malformed or truncated files.
    """
    _check_directory(file, max_files)
    try:
        opened = zipfile.ZipFile(file)
    except _DAMAGE as error:
        raise PackageError("the archive is damaged: its list of files cannot be read") from error
    for info in opened.infolist():
        if not info.filename:
            raise PackageError("the archive holds an entry without a name; pack it again")
        _check_entry(info)
        yield ArchiveEntry(info.filename, info.file_size, info.is_dir(), _reader(opened, info, count_bytes))


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
    if length > max_files * _ENTRY_BYTES:
        raise PackageError("the archive's list of files is too long")
    file.seek(max(0, size - (len(tail) - at) - length))
    listed = file.read(length).count(b"PK\1\2")  # whatever the end record says, the standard library reads them all
    file.seek(0)
    if max(entries, listed) > max_files:
        raise PackageError(f"the archive holds more than {max_files} files")


def _check_entry(info: zipfile.ZipInfo) -> None:
    mode = info.external_attr >> 16
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise PackageError(f"the archive entry {quote(info.filename)} is a link, device or other special file")
    if info.flag_bits & _ENCRYPTED:
        raise PackageError(f"the archive entry {quote(info.filename)} is encrypted")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise PackageError(f"the archive entry {quote(info.filename)} uses a compression other than deflate")


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
            raise PackageError(f"the archive is damaged: {quote(info.filename)} cannot be unpacked") from error

    return chunks
