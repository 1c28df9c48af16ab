"""Publishes a package into a running server over HTTP."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from adapters.errors import PackageError
from adapters.kinds.config import CONFIG_FILE
from adapters.names import check_name
from adapters.package.archive import pack, unpack
from adapters.package.files import WEIGHTS_FILE
from adapters.package.reading import read_package
from trainer.files import PACKAGE_DIR
from trainer.progress import ProgressCallback
from trainer.serving.client import AdminClient, ServedVersion


def publish(
    directory: Path,
    server: str,
    name: str,
    *,
    replace: bool = False,
    allow_noop: bool = False,
    admin_key: str | None = None,
    timeout: float = 600.0,
    progress: ProgressCallback | None = None,
) -> ServedVersion:
    """Check the package in ``directory`` and upload it to ``server`` under ``name``, which serves it from then on.

    The server refuses an adapter that answers exactly as the base does, unless ``allow_noop``. ``progress`` is told
    bytes sent and bytes in all. Raises AdapterError for an unsound package, before anything is sent, and PublishError
    with the server's own words when it refuses.
    """
    check_name(name)
    read_package(directory)
    with AdminClient(server, admin_key, timeout=timeout) as client:
        return upload(client, directory, name, replace=replace, allow_noop=allow_noop, progress=progress)


def upload(
    client: AdminClient,
    directory: Path,
    name: str,
    *,
    replace: bool = False,
    activate: bool = True,
    allow_noop: bool = False,
    expected_live: int | None = None,
    if_match: str | None = None,
    progress: ProgressCallback | None = None,
) -> ServedVersion:
    """Upload a package that was checked; unless ``activate`` it only becomes a candidate. Raises PublishError."""
    with tempfile.TemporaryDirectory(prefix="hotswap-publish-") as folder:
        archive = Path(folder) / "package.tar"
        pack(directory, archive)
        fields = {"name": name, "allow_noop": str(allow_noop).lower(), "activate": str(activate).lower()}
        if expected_live is not None:
            fields["expected_live"] = str(expected_live)
        with archive.open("rb") as file:
            counted = _Counted(file, archive.stat().st_size, progress)
            return client.upload(counted, fields, replace=replace, if_match=if_match)


@contextmanager
def found_package(path: Path) -> Iterator[Path]:
    """The directory of the package at ``path``, which is that directory, the output of a run, weights beside their
    configuration, or an archive, unpacked as long as the block lasts. Raises PackageError.
    """
    if path.is_dir():
        inner = path / PACKAGE_DIR
        yield inner if inner.is_dir() and not (path / CONFIG_FILE).exists() else path
    elif path.name == WEIGHTS_FILE and path.is_file():
        yield path.parent
    elif path.is_file():
        with tempfile.TemporaryDirectory(prefix="hotswap-publish-") as folder:
            try:
                package = unpack(path, Path(folder))
            except OSError as error:
                raise PackageError.unreadable(path.name, error) from error
            yield package
    else:
        raise PackageError(f"{path} is neither a package's directory nor an archive of one")


@contextmanager
def checked_package(path: Path, name: str) -> Iterator[Path]:
    """As ``found_package``, the package having been read and found sound, and ``name`` one that it can have."""
    check_name(name)
    with found_package(path) as package:
        read_package(package)
        yield package


class _Counted:
    """A file that tells how much of it was read."""

    def __init__(self, file: BinaryIO, size: int, progress: ProgressCallback | None) -> None:
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
