"""An uploaded adapter to a package directory in quarantine: one archive, or the package's files one by one.

Multipart bodies are streamed to disk: parts become small fields or numbered files; a client's name is never a path.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect

from adapters.limits import PackageLimits
from adapters.package.archive import unpack
from adapters.package.files import PACKAGE_FILES, flat_name, is_junk, is_kept
from server.adapter_key import version_number
from server.api.error_responses import ApiError
from server.catalog.store import AdapterStore, disk_errors
from server.traces import part

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks


MAX_PARTS = 64
MAX_FIELD_BYTES = 4096
BUFFER_BYTES = 1 << 20  # written at once, on another thread


@dataclass
class UploadedFile:
    """One file part: the name the client gave (untrusted), and where its bytes are."""

    name: str
    path: Path


@dataclass
class Form:
    """A parsed body."""

    fields: dict[str, str] = field(default_factory=dict)
    files: list[UploadedFile] = field(default_factory=list)


PACKAGE_FORM = "send the package as multipart/form-data: one archive file, or the files of the package"


async def read_form(request: Request, folder: Path, wanted: str = PACKAGE_FORM) -> Form:
    """Stream the body's parts; files go into ``folder``. Raises ApiError for what is no sound multipart body.

    ``wanted`` says what to send instead of anything else.
    """
    media, options = parse_options_header(request.headers.get("content-type", ""))
    if media != b"multipart/form-data" or b"boundary" not in options:
        raise ApiError(415, wanted, code="unsupported_media_type")
    sink = _Sink(folder)
    try:
        parser = MultipartParser(options[b"boundary"], sink.callbacks())
        async for chunk in request.stream():
            parser.write(chunk)
            if sink.buffered >= BUFFER_BYTES:
                await asyncio.to_thread(sink.flush)
        parser.finalize()
        await asyncio.to_thread(sink.flush)
    except FormParserError as error:
        raise ApiError(400, "the multipart body is malformed", code="invalid_multipart") from error
    except ClientDisconnect as error:
        raise ApiError(400, "the upload ended early", code="upload_incomplete") from error
    finally:
        sink.close()
    if not sink.ended:
        raise ApiError(400, "the upload ended early", code="upload_incomplete")
    return sink.form


class _Sink:
    """Takes the parser's callbacks; collects bytes until ``flush`` writes them."""

    def __init__(self, folder: Path) -> None:
        self.form = Form()
        self.buffered = 0
        self.ended = False
        self._parts = 0
        self._folder = folder
        self._pending: list[tuple[BinaryIO, bytes]] = []
        self._open: list[BinaryIO] = []
        self._header = b""
        self._value = b""
        self._headers: dict[str, bytes] = {}
        self._file: BinaryIO | None = None
        self._field: str | None = None
        self._text = b""

    def callbacks(self) -> MultipartCallbacks:
        """What the parser calls."""
        return {
            "on_part_begin": self._part_begin,
            "on_part_data": self._part_data,
            "on_part_end": self._part_end,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_end": self._end,
        }

    def flush(self) -> None:
        """Write what was collected."""
        pending, self._pending, self.buffered = self._pending, [], 0
        for file, data in pending:
            file.write(data)
        for file in self._open[:-1] if self._file else self._open:
            file.close()
        self._open = [self._file] if self._file else []

    def close(self) -> None:
        """Close whatever is open."""
        for file in self._open:
            file.close()

    def _part_begin(self) -> None:
        self._headers, self._header, self._value = {}, b"", b""
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise ApiError(400, f"more than {MAX_PARTS} parts", code="invalid_multipart")

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        self._headers[self._header.decode("latin-1").lower()] = self._value
        self._header, self._value = b"", b""

    def _headers_finished(self) -> None:
        disposition = self._headers.get("content-disposition", b"")
        _, options = parse_options_header(disposition)
        self._field, self._text = options.get(b"name", b"").decode("utf-8", "replace"), b""
        if b"filename*=" in disposition:  # how older clients write a name that is not ASCII; it is none of a package's
            options.setdefault(b"filename", b"archive")
        if b"filename" in options:
            path = self._folder / f"part-{len(self.form.files)}"
            self._file = path.open("xb")
            self._open.append(self._file)
            self.form.files.append(UploadedFile(_base_name(options[b"filename"]), path))

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._file is not None:
            self._pending.append((self._file, data[start:end]))
            self.buffered += end - start
            return
        self._text += data[start:end]
        if len(self._text) > MAX_FIELD_BYTES:
            raise ApiError(400, f"the field {self._field!r} is too long", param=self._field, code="invalid_multipart")

    def _part_end(self) -> None:
        if self._file is None and self._field:
            self.form.fields[self._field] = self._text.decode("utf-8", "replace")
        self._file = None

    def _end(self) -> None:
        self.ended = True


def _base_name(name: bytes) -> str:
    """The last component of whatever path a client sent, or what a package calls a file in one of its folders."""
    parts = name.decode("utf-8", "replace").replace("\\", "/").split("/")
    return flat_name("/".join(parts[-2:])) or parts[-1]


_YES, _NO = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


@dataclass(frozen=True)
class Upload:
    """A package directory in quarantine, not yet looked at, and the other fields; ``source``: where it was fetched."""

    package: Path
    fields: dict[str, str]
    source: str | None = None

    def flag(self, name: str, *, default: bool = False) -> bool:
        """A yes or no among the fields. Raises ApiError for anything else: it decides what is served."""
        text = self.fields.get(name, "").strip().lower()
        if text and text not in _YES + _NO:
            raise ApiError(400, f"{name}: must be true or false, not {text[:40]!r}", param=name)
        return text in _YES if text else default

    def number(self, name: str, *, default: int | None = None) -> int | None:
        """A version's number, or 0, among the fields. Raises ApiError for anything else."""
        text = self.fields.get(name, "").strip()
        if text and text != "0" and version_number(text) is None:
            raise ApiError(400, f"{name}: must be the number of a version, or 0, not {text[:40]!r}", param=name)
        return int(text) if text else default


@asynccontextmanager
async def receive(request: Request, store: AdapterStore, max_megabytes: float) -> AsyncIterator[Upload]:
    """Stream the body into quarantine; nothing of it stays. Raises ApiError, PackageError or StoreError."""
    place = await asyncio.to_thread(store.new_quarantine)
    try:
        with disk_errors(), part("fetch"):
            form = await read_form(request, place)
            package = await asyncio.to_thread(_package, form.files, place, max_megabytes)
        yield Upload(package, form.fields)
    finally:
        await asyncio.to_thread(store.discard, place)


def _package(files: list[UploadedFile], place: Path, max_megabytes: float) -> Path:
    """The directory of the package among ``files``."""
    files = [file for file in files if not is_junk(file.name)]
    if not files:
        raise ApiError(400, "the form holds no file; attach the adapter's archive or its files", param="file")
    if not any(file.name in PACKAGE_FILES for file in files):
        if len(files) > 1:
            raise ApiError(400, "several files, and none is part of a package; attach one archive", param="file")
        limit = int(max_megabytes * 2**20)
        return unpack(files[0].path, place / "unpacked", PackageLimits(max_bytes=max(2 * limit, 1)))
    folder = place / "package"
    folder.mkdir()
    names = {file.name for file in files}
    for file in files:
        if not is_kept(file.name, beside=names):
            continue
        if (folder / file.name).exists():
            raise ApiError(400, f"the form holds {file.name} twice", param="file")
        file.path.rename(folder / file.name)
    return folder
