"""Files by the SHA-256 digest of their content: below the data directory, or in the object store as packages are.

Equal content is kept once. With an object store ``root`` has copies, which can be had again.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapters.package.files import sync
from server.catalog.store.faults import artifact_errors, disk_errors
from server.catalog.store.remote_files import RemoteFiles
from server.errors import EngineStartError, StoreError

_DIGEST = re.compile("[0-9a-f]{64}")


class BlobStore:
    """Content below ``root``; with ``url`` and its ``options`` in that object store. Calls block; raises StoreError."""

    def __init__(self, root: Path, url: str = "", options: Mapping[str, Any] | None = None) -> None:
        self._root = root
        self._remote = RemoteFiles(url, options) if url else None
        self._fetching = threading.Lock()
        try:
            root.mkdir(parents=True, exist_ok=True)
            for left in root.glob("*.part"):
                left.unlink(missing_ok=True)  # of a crash
        except OSError as error:
            raise EngineStartError(
                f"cannot keep files in {root}: {error.strerror}; choose another --data-dir"
            ) from error

    @disk_errors()
    def put(self, source: Path) -> tuple[str, int]:
        """Keep a copy of the file ``source``, durably; returns its digest and size."""
        with source.open("rb") as file:
            digest, nbytes = hashlib.file_digest(file, "sha256").hexdigest(), file.tell()
        if self._remote is not None and not self._is_remote(digest):
            with artifact_errors():
                self._remote.call("put_file", str(source), self._address(digest), nbytes=nbytes)
        target = self._path(digest)
        if not target.is_file():
            part = self._root / f"{digest}-{secrets.token_hex(8)}.part"
            shutil.copyfile(source, part)  # not a link: whoever has the source may write to it again
            sync(part)
            part.rename(target)
            sync(self._root)
        return digest, nbytes

    @disk_errors()
    def path(self, digest: str) -> Path:
        """Where the content of ``digest`` can be read. Raises StoreError where it is gone."""
        target = self._path(digest)
        if target.is_file():
            return target
        if self._remote is None:
            raise StoreError("the content of this file is gone from --data-dir")
        with self._fetching:
            part = self._root / f"{digest}-{secrets.token_hex(8)}.part"
            try:
                with artifact_errors(to_disk=True):
                    self._remote.call("get_file", self._address(digest), str(part))
                part.rename(target)
            except FileNotFoundError as error:
                raise StoreError("the content of this file is gone from the store of --artifacts") from error
            finally:
                part.unlink(missing_ok=True)
        return target

    @disk_errors()
    def remove(self, digest: str) -> None:
        """Delete what has that digest; nothing is fine, too."""
        self._path(digest).unlink(missing_ok=True)
        if self._remote is not None and self._is_remote(digest):
            with artifact_errors():
                self._remote.call("rm_file", self._address(digest))

    def _path(self, digest: str) -> Path:
        assert _DIGEST.fullmatch(digest), digest
        return self._root / digest

    def _address(self, digest: str) -> str:
        assert self._remote is not None
        return f"{self._remote.root}/files/{digest}"

    def _is_remote(self, digest: str) -> bool:
        assert self._remote is not None
        with artifact_errors():
            return bool(self._remote.call("exists", self._address(digest)))
