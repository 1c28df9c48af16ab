"""Reads gzip streams with bounded work. Knows nothing of what is packed in them.

The standard library's reader spends about ten microseconds of Python on every member, and a member of nothing has 20
bytes: a megabyte of them costs half a second. Here members are counted, beside how much is packed.
"""

from __future__ import annotations

import zlib
from typing import BinaryIO

from adapters.errors import PackageError

_CHUNK = 1 << 16
_GZIP = 31  # zlib's window bits for a stream with gzip's header
_FREE_MEMBERS = 64
_MEMBER_BYTES = 4096  # of packed data for each further member: tools that write many (bgzip) make them far longer


class Gunzip:
    """The unpacked bytes of the gzip ``file`` of ``packed`` bytes. All methods raise EOFError or zlib.error for damage.

    PackageError for more members than such a file has any use for.
    """

    def __init__(self, file: BinaryIO, packed: int) -> None:
        self._file = file
        self._most = _FREE_MEMBERS + packed // _MEMBER_BYTES
        self._members = 0
        self._inflate: zlib._Decompress | None = None
        self._packed = b""
        self._ready = bytearray()

    def peek(self, count: int) -> bytes:
        """As ``read``; the same bytes are read again."""
        while len(self._ready) < count and (more := self._more()):
            self._ready += more
        return bytes(self._ready[:count])

    def read(self, count: int) -> bytes:
        """``count`` bytes, fewer only at the end."""
        found = self.peek(count)
        del self._ready[:count]
        return found

    def _more(self) -> bytes:
        """Some more unpacked bytes; none at the end."""
        while self._begin():
            assert self._inflate is not None
            data = self._packed or self._file.read(_CHUNK)
            if not data:
                raise EOFError
            out = self._inflate.decompress(data, 1 << 20)
            self._packed = self._inflate.unused_data if self._inflate.eof else self._inflate.unconsumed_tail
            if out:
                return out
        return b""

    def _begin(self) -> bool:
        """Whether there is a member to read from, be it the next one. Zeros may stand between them."""
        if self._inflate is not None and not self._inflate.eof:
            return True
        self._packed = self._packed.lstrip(b"\0")
        while not self._packed:
            if not (read := self._file.read(_CHUNK)):
                return False
            self._packed = read.lstrip(b"\0")
        self._members += 1
        if self._members > self._most:
            raise PackageError(f"the archive is suspicious: its gzip stream has more than {self._most} members")
        self._inflate = zlib.decompressobj(_GZIP)
        return True
