"""Reads a tar stream entry by entry with bounded memory. Knows nothing of packages.

The standard library's reader holds extended headers and sparse maps in memory at whatever size a file claims, which
a small compressed upload can abuse; this one reads plain files and folders (ustar, GNU long names, pax paths) only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from adapters.errors import PackageError
from adapters.names import shown

_BLOCK = 512
_MAX_EXTENDED = 64 * 1024  # bytes of one GNU long name or pax header
_MAX_CHAIN = 4  # of those before one file
_BAD_PAX = "the archive is damaged: a pax header is malformed"
_REGULAR, _FOLDER, _LONG_NAME, _PAX, _PAX_GLOBAL = (b"0", b"\0", b"7"), b"5", b"L", b"x", b"g"

ReadExactly = Callable[[int], bytes]


@dataclass(frozen=True)
class Entry:
    """A file or folder of an archive. ``chunks`` yields a file's bytes and must be used up before the next entry."""

    name: str
    size: int
    is_folder: bool
    chunks: Callable[[], Iterator[bytes]]


def looks_like_tar(block: bytes) -> bool:
    """Whether ``block`` is a sound tar header (or the end mark of an empty archive)."""
    return len(block) == _BLOCK and (not any(block) or _checksum_agrees(block))


def iter_tar(read: ReadExactly) -> Iterator[Entry]:
    """The files and folders of a tar stream. ``read(n)`` returns n bytes, or fewer only at the end.

    Raises PackageError for links, devices and other special entries, and for malformed or truncated streams.
    """
    overrides: dict[str, str] = {}
    chain = 0
    while any(block := _exactly(read, _BLOCK)):
        if not _checksum_agrees(block):
            raise PackageError("the archive is damaged: a tar header has a wrong checksum")
        kind, size = block[156:157], _number(block[124:136])
        if kind in (_LONG_NAME, _PAX, _PAX_GLOBAL):
            overrides |= _extended(kind, _padded(read, size))
            chain += 1
            if chain > _MAX_CHAIN:
                raise PackageError("the archive is damaged: too many extended headers before one file")
            continue
        name = overrides.get("path") or _plain_name(block)
        size = _decimal(overrides["size"]) if "size" in overrides else size
        overrides, chain = {}, 0
        is_folder = kind == _FOLDER or (kind in _REGULAR and name.endswith("/"))
        if not is_folder and kind not in _REGULAR:
            raise PackageError(f"the archive entry {shown(name)} is a link, device or other special file")
        yield from _entry(read, name, 0 if is_folder else size, is_folder)


def _entry(read: ReadExactly, name: str, size: int, is_folder: bool) -> Iterator[Entry]:
    left = size

    def chunks() -> Iterator[bytes]:
        nonlocal left
        while left:
            chunk = _exactly(read, min(left, 1 << 20))
            left -= len(chunk)
            yield chunk

    yield Entry(name, size, is_folder, chunks)
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
