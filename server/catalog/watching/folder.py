"""What lies in a watched folder, as far as names, sizes and times tell. Reads no file. Blocks on the disk."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from adapters.errors import PackageError
from adapters.package.files import PACKAGE_FILES, is_junk, is_kept, package_files

_ARCHIVE = re.compile(r"(.+?)[.](?:tar|tar[.]gz|tgz|zip)", re.IGNORECASE)
_UNFINISHED = re.compile(r".*[.](?:part|partial|tmp|temp|crdownload|filepart|download|swp)|.*~", re.IGNORECASE)
Signature = tuple[tuple[str, int, int], ...]  # of each file that counts: name, bytes, nanoseconds of its last change


@dataclass(frozen=True)
class Entry:
    """A package, a folder or an archive, or what may become one.

    ``arriving``: a file of it is being written under another name, as rsync and browsers do.
    """

    name: str
    path: Path
    signature: Signature
    arriving: bool = False


def scan(folder: Path) -> tuple[dict[str, Entry], list[str]]:
    """The packages in ``folder`` by name, and archives that are passed over for a folder of their name.

    Raises OSError.
    """
    found: dict[str, Entry] = {}
    passed_over = []
    with os.scandir(folder) as children:
        for child in sorted(children, key=lambda child: child.name):
            entry = None if is_junk(child.name) else look(Path(child.path))
            if entry is None:
                continue
            other = found.get(entry.name)
            if other is None or (entry.path.is_dir() and not other.path.is_dir()):
                found[entry.name] = entry
            if other is not None:
                passed_over.append((other if found[entry.name] is entry else entry).path.name)
    return found, passed_over


def look(path: Path) -> Entry | None:
    """What is at ``path`` now; None if it is no package, nor the beginning of one."""
    try:
        if path.is_dir():
            return _look_into(path)
        if (archive := _ARCHIVE.fullmatch(path.name)) and path.is_file():
            about = path.stat()
            return Entry(archive[1], path, ((path.name, about.st_size, about.st_mtime_ns),))
    except FileNotFoundError:  # it goes just now
        pass
    return None


def _look_into(folder: Path) -> Entry | None:
    with os.scandir(folder) as children:
        files = {child.name: Path(child.path) for child in children if not child.is_dir()}
    names = [name for name in files if _counts(name, files)]
    if not any(name in PACKAGE_FILES for name in names):
        return None
    paths = {name: files[name] for name in names} | package_files(folder)
    about = [(name, paths[name].stat()) for name in sorted(paths)]
    signature = tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in about)
    return Entry(folder.name, folder, signature, any(map(_is_arriving, files)))


def _counts(name: str, beside: Collection[str]) -> bool:
    """Whether a file is part of the package, or why it is refused."""
    try:
        return is_kept(name, beside=beside)
    except PackageError:
        return True


def _is_arriving(name: str) -> bool:
    """Whether a file will be one of the package's once it is there: .adapter_model.safetensors.k3Xz9Q, or ...part."""
    if name in PACKAGE_FILES or name.startswith("._"):
        return False
    hidden = name.startswith(".") or _UNFINISHED.fullmatch(name) is not None
    return hidden and any(file in name for file in PACKAGE_FILES)


def device_of(folder: Path) -> int:
    """The disk of ``folder``. Raises OSError."""
    return folder.stat().st_dev
