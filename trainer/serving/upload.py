"""Publishes a package into a running server over HTTP."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import BinaryIO

from adapters.kinds.config import CONFIG_FILE
from adapters.names import check_name
from adapters.package.archive import pack
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
    progress: ProgressCallback | None = None,
) -> ServedVersion:
    """Upload a package that was checked; unless ``activate`` it only becomes a candidate. Raises PublishError."""
    with tempfile.TemporaryDirectory(prefix="hotswap-publish-") as folder:
        archive = Path(folder) / "package.tar"
        pack(directory, archive)
        fields = {"name": name, "allow_noop": str(allow_noop).lower(), "activate": str(activate).lower()}
        with archive.open("rb") as file:
            counted = _Counted(file, archive.stat().st_size, progress)
            return client.upload(counted, fields, replace=replace)


def find_package(directory: Path) -> Path:
    """``directory``, or the package in it when it is the output of a run."""
    inner = directory / PACKAGE_DIR
    return inner if inner.is_dir() and not (directory / CONFIG_FILE).exists() else directory


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
