"""A package in an object store: one archive, or the files of a folder."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fsspec import Callback
from typing_extensions import override

from adapters.package.files import flat_name, is_kept, is_module_folder
from server.catalog.sources.errors import not_allowed, stopped, too_large, unavailable
from server.catalog.store.faults import artifact_errors
from server.catalog.store.remote_files import RemoteFiles
from server.errors import EngineStartError, StoreError


def check_prefix(url: str, prefixes: Sequence[str]) -> None:
    """Raise SourceError unless ``url`` is below one of ``prefixes``, however it is read."""
    plain = not any(part in url for part in ("::", "@", "?", "#", "\\")) and ".." not in url.split("/")
    allowed = (prefix.rstrip("/") for prefix in prefixes)
    if not plain or not any(url == prefix or url.startswith(f"{prefix}/") for prefix in allowed):
        raise not_allowed("this server fetches nothing from there: see --source-url-prefix")


def get(url: str, options: Mapping[str, Any], place: Path, most: int, stop: threading.Event) -> str | None:
    """Get what is at ``url``: ``place/archive``, whose SHA-256 is returned, or the files in ``place/package``.

    Given up once ``stop`` is set. Raises SourceError, PackageError, or OSError of our disk.
    """
    try:
        files = RemoteFiles(url, options)
        with artifact_errors("the store of a source", to_disk=True):
            info = files.call("info", files.root)
            if info["type"] == "directory":
                _get_folder(files, place / "package", most, _Stop(stop))
                return None
            return _get_archive(files, info["size"] or 0, place / "archive", most, _Stop(stop))
    except EngineStartError as error:
        raise unavailable(str(error)) from error
    except (StoreError, FileNotFoundError) as error:
        raise unavailable("there is nothing at that address, or its store does not give it") from error


class _Stop(Callback):  # type: ignore[misc]  # fsspec has no types
    """Breaks off the file that is being fetched once ``stop`` is set."""

    def __init__(self, stop: threading.Event) -> None:
        super().__init__()
        self._stop = stop

    @override
    def relative_update(self, inc: int = 1) -> None:
        """Called with every piece."""
        if self._stop.is_set():
            raise stopped()


def _get_archive(files: RemoteFiles, size: int, target: Path, most: int, stop: _Stop) -> str:
    if size > most:
        raise too_large(most)
    files.call("get_file", files.root, str(target), nbytes=size, callback=stop)
    with target.open("rb") as file:
        if os.fstat(file.fileno()).st_size > most:
            raise too_large(most)
        return hashlib.file_digest(file, "sha256").hexdigest()


def _get_folder(files: RemoteFiles, target: Path, most: int, stop: _Stop) -> None:
    sizes, folders = _listed(files, files.root)
    kept = {name: (name, size) for name, size in sizes.items() if is_kept(name, beside=sizes)}
    for folder in filter(is_module_folder, folders):
        paths = {f"{folder}/{name}": size for name, size in _listed(files, f"{files.root}/{folder}")[0].items()}
        kept |= {flat: (path, size) for path, size in paths.items() if (flat := flat_name(path)) is not None}
    if sum(size for _, size in kept.values()) > most:
        raise too_large(most)
    target.mkdir()
    for name, (path, size) in kept.items():
        files.call("get_file", f"{files.root}/{path}", str(target / name), nbytes=size, callback=stop)


def _listed(files: RemoteFiles, folder: str) -> tuple[dict[str, int], list[str]]:
    """The files in ``folder`` with their sizes, and the folders."""
    entries = [(entry["name"].rstrip("/").rsplit("/", 1)[-1], entry) for entry in files.call("ls", folder, detail=True)]
    sizes = {name: entry["size"] or 0 for name, entry in entries if entry["type"] == "file"}
    return sizes, [name for name, entry in entries if entry["type"] == "directory"]
