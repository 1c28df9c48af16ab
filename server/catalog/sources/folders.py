"""Files below folders that the operator names. No link leads out: an open file says itself where it really is."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from adapters.package.files import is_kept, package_files
from adapters.quoting import quote
from server.catalog.sources.errors import not_allowed, too_large, unavailable

_CHUNK = 1 << 20


def find(source: str, roots: Sequence[Path]) -> Path | None:
    """The file or folder of ``source`` below a root, links followed; None if there is none, or it is elsewhere."""
    if "\0" in source:
        return None
    for root in roots:
        path = Path(os.path.realpath(root / source))
        if _is_below(path, [root]) and (path.is_file() or path.is_dir()):
            return path
    return None


def copy_folder(source: Path, target: Path, roots: Sequence[Path], most: int) -> None:
    """Copy what of a folder below ``roots`` may belong to a package. Raises SourceError, or PackageError."""
    target.mkdir()
    left = most
    try:
        names = sorted(child.name for child in source.iterdir() if not child.is_dir())
    except OSError as error:
        raise unavailable(f"its folder cannot be read: {error.strerror}") from None
    paths = {name: source / name for name in names if is_kept(name, beside=names)}
    for name, path in {**paths, **package_files(source)}.items():
        left -= copy_file(path, target / name, roots, left)[1]


def copy_file(source: Path, target: Path, roots: Sequence[Path], most: int) -> tuple[str, int]:
    """Copy a file below ``roots``, and return its SHA-256 and size. Raises SourceError."""
    try:
        descriptor = os.open(source, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        raise unavailable(f"{quote(source.name)} cannot be read: {error.strerror}") from None
    with open(descriptor, "rb") as file, target.open("xb") as out:
        if not _is_below(Path(os.path.realpath(f"/proc/self/fd/{descriptor}")), roots):
            raise not_allowed(f"{quote(source.name)} is a link that leads out of --adapter-root")
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise unavailable(f"{quote(source.name)} is not a file")
        digest, size = hashlib.sha256(), 0
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
            if size > most:
                raise too_large(most)
            out.write(chunk)
    return digest.hexdigest(), size


def _is_below(path: Path, roots: Sequence[Path]) -> bool:
    return any(path.is_relative_to(os.path.realpath(root)) for root in roots)
