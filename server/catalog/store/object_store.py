"""Packages in an object store, or any other file system that fsspec knows.

Below the prefix, ``packages/ID/`` holds a package's files and ``complete/ID-BYTES.json`` their sizes and digests. The
latter is written last and deleted first: a package without it is not there. Nothing is ever written twice.
"""

from __future__ import annotations

import hashlib
import logging
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec

from adapters.errors import PackageChangedError, PackageError
from server.catalog.store.faults import UnreachableStoreError, artifact_errors
from server.catalog.store.remote_files import RemoteFiles
from server.errors import EngineStartError, StoreError

logger = logging.getLogger(__name__)
_MARK = re.compile("([0-9a-f]{32})-([0-9]{1,19})[.]json")
_MAX_MARK_BYTES = 64 * 1024


class FileMark(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one file of a package was when it was written."""

    size: int
    sha256: str


class PackageMark(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The files of a package that is complete, by name."""

    files: dict[str, FileMark]

    @property
    def nbytes(self) -> int:
        """What they weigh."""
        return sum(file.size for file in self.files.values())


def mark_of(package: Path) -> PackageMark:
    """The mark of the files in the directory ``package``. Raises OSError."""
    files = {}
    for path in sorted(package.iterdir()):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            files[path.name] = FileMark(file.tell(), digest)
    return PackageMark(files)


class ObjectStore:
    """Complete packages under opaque ids below one prefix of a store. Several servers may share it.

    Raises StoreError, or StoreFullError, for whatever the store refuses.
    """

    def __init__(self, url: str, options: Mapping[str, Any] | None = None) -> None:
        self.url = url
        self._files = RemoteFiles(url, options)
        self._root = self._files.root
        self._known: dict[str, int] = {}

    def check(self) -> None:
        """See that it can be written to. Raises EngineStartError where an operator has to change something."""
        probe = f"{self._root}/probe-{secrets.token_hex(16)}"
        try:
            with artifact_errors():
                self._files.call("pipe_file", probe, b"")
                self._files.call("rm_file", probe)
        except FileNotFoundError as error:
            raise EngineStartError(f"--artifacts {self.url}: there is no such bucket or folder") from error
        except UnreachableStoreError as error:
            logger.warning("starting without it: %s", error)
        except StoreError as error:
            raise EngineStartError(f"--artifacts {self.url}: {error}") from error

    def sizes(self) -> dict[str, int]:
        """The bytes of every complete package, by id."""
        with artifact_errors():
            try:
                names = self._files.call("ls", f"{self._root}/complete", detail=False)
            except FileNotFoundError:
                return {}
        found = [_MARK.fullmatch(name.rsplit("/", 1)[-1]) for name in names]
        self._known = {mark[1]: int(mark[2]) for mark in found if mark}
        return dict(self._known)

    def put(self, name: str, package: Path, mark: PackageMark) -> None:
        """Write the files of the directory ``package``, then its ``mark``. On an error ``remove`` what there is."""
        with _not_missing(), artifact_errors():
            for file, about in mark.files.items():
                self._files.call("put_file", str(package / file), self._file(name, file), nbytes=about.size)
            self._files.call("pipe_file", self._mark(name, mark.nbytes), msgspec.json.encode(mark))
        self._known[name] = mark.nbytes

    def mark(self, name: str) -> PackageMark:
        """What the complete package ``name`` consists of. Raises PackageError when there is none."""
        try:
            if (nbytes := self._size(name)) is None:
                raise FileNotFoundError
            with artifact_errors():
                raw = self._files.call("cat_file", self._mark(name, nbytes), end=_MAX_MARK_BYTES)
            mark = msgspec.json.decode(raw, type=PackageMark)
        except FileNotFoundError:
            raise PackageError("its files are gone from the store of --artifacts") from None
        except msgspec.DecodeError as error:
            raise PackageChangedError("what the store of --artifacts says of its files is damaged") from error
        if any("/" in file or file.startswith(".") for file in mark.files):
            raise PackageChangedError("what the store of --artifacts says of its files is damaged")
        return mark

    def get(self, name: str, into: Path) -> None:
        """Write the files of ``name`` into the directory ``into``, as they were put. Raises PackageError as well."""
        mark = self.mark(name)
        for file, about in mark.files.items():
            try:
                with artifact_errors(to_disk=True):
                    self._files.call("get_file", self._file(name, file), str(into / file), nbytes=about.size)
            except FileNotFoundError as error:
                raise PackageError(f"{file} is gone from the store of --artifacts") from error
        if mark_of(into) != mark:
            raise PackageChangedError("its files in the store of --artifacts are not those that were uploaded")

    def remove(self, name: str) -> None:
        """Delete a package, or what there is of one; nothing is fine, too."""
        with artifact_errors():
            if (nbytes := self._size(name)) is not None:
                with suppress(FileNotFoundError):
                    self._files.call("rm_file", self._mark(name, nbytes))
            with suppress(FileNotFoundError):
                self._files.call("rm", f"{self._root}/packages/{name}", recursive=True)
        self._known.pop(name, None)

    def _size(self, name: str) -> int | None:
        """The bytes of a package, which its mark is called by; asked anew only where that is not known."""
        nbytes = self._known.get(name)
        return self.sizes().get(name) if nbytes is None else nbytes

    def _file(self, name: str, file: str) -> str:
        return f"{self._root}/packages/{name}/{file}"

    def _mark(self, name: str, nbytes: int) -> str:
        return f"{self._root}/complete/{name}-{nbytes}.json"


@contextmanager
def _not_missing() -> Iterator[None]:
    """Nothing is read in the block, so what is missing is the bucket."""
    try:
        yield
    except FileNotFoundError as error:
        raise StoreError("the bucket of --artifacts is gone") from error
