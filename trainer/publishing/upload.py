"""Publishes a package into a running server over HTTP. Knows the admin API and nothing else of the server."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

import httpx

from adapters.archive import pack
from adapters.names import check_name
from adapters.package import read_package
from trainer.errors import PublishError

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Published:
    """What the server now serves."""

    name: str
    version: int
    digest: str
    warnings: tuple[str, ...]


def publish(
    directory: Path,
    server: str,
    name: str,
    *,
    replace: bool = False,
    allow_noop: bool = False,
    admin_key: str | None = None,
    timeout: float = 600.0,
    progress: Progress | None = None,
) -> Published:
    """Check the package in ``directory`` and upload it to ``server`` under ``name``.

    The server refuses an adapter that answers exactly as the base does, unless ``allow_noop``. ``progress`` is told
    bytes sent and bytes in all. Raises AdapterError for an unsound package, before anything is sent, and PublishError
    with the server's own words when it refuses.
    """
    check_name(name)
    read_package(directory)
    headers = {"Authorization": f"Bearer {admin_key}"} if admin_key else {}
    with tempfile.TemporaryDirectory(prefix="hotswap-publish-") as folder:
        archive = Path(folder) / "package.tar"
        pack(directory, archive)
        with archive.open("rb") as file:
            counted = _Counted(file, archive.stat().st_size, progress)
            fields = {"name": name, "allow_noop": str(allow_noop).lower()}
            response = _send(server, fields, counted, replace=replace, headers=headers, timeout=timeout)
    if not response.is_success:
        raise PublishError(_refusal(response))
    return _published(response)


def show_progress(sent: int, total: int) -> None:
    """Write one line on stderr that is updated in place; nothing where stderr is no terminal."""
    if sys.stderr.isatty():
        end = "\n" if sent >= total else ""
        sys.stderr.write(f"\ruploading {sent / 1e6:.1f} of {total / 1e6:.1f} MB{end}")
        sys.stderr.flush()


class _Counted:
    """A file that tells how much of it was read."""

    def __init__(self, file: BinaryIO, size: int, progress: Progress | None) -> None:
        self._file = file
        self._size = size
        self._progress = progress

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        if data and self._progress:
            self._progress(self._file.tell(), self._size)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


def _send(
    server: str, fields: dict[str, str], file: _Counted, *, replace: bool, headers: dict[str, str], timeout: float
) -> httpx.Response:
    url = f"{server.rstrip('/').removesuffix('/v1')}/v1/adapters"
    method, url = ("PUT", f"{url}/{quote(fields['name'], safe='')}") if replace else ("POST", url)
    upload: Any = {"file": ("package.tar", file, "application/x-tar")}
    try:
        with httpx.Client(timeout=httpx.Timeout(timeout, connect=10.0)) as client:
            return client.request(method, url, headers=headers, data=fields, files=upload)
    except httpx.TimeoutException as error:
        raise PublishError(f"{server} did not answer in time; is it up and ready?") from error
    except (httpx.InvalidURL, httpx.UnsupportedProtocol, UnicodeError) as error:
        raise PublishError(f"{server!r} is not a server address; give one like http://localhost:8000") from error
    except httpx.TransportError as error:
        raise PublishError(f"{server} cannot be reached or broke off: {str(error) or type(error).__name__}") from error


def _published(response: httpx.Response) -> Published:
    try:
        body = response.json()
        warnings = tuple(str(warning) for warning in body.get("warnings") or ())
        return Published(str(body["name"]), int(body["version"]), str(body["digest"]), warnings)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PublishError(f"{response.url.host} answered, but not like a hotswap server") from error


def _refusal(response: httpx.Response) -> str:
    """The server's own words, with the status."""
    try:
        message = response.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = f"it answered {response.status_code} {response.reason_phrase}"
    return f"the server refused the adapter ({response.status_code}): {message}"
