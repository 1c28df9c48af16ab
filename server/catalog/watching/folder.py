"""What lies in a watched folder, as far as names, sizes and times tell. Reads no file. Blocks on the disk."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from adapters.errors import PackageError
from adapters.package.files import PACKAGE_FILES, is_junk, is_kept

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


def scan(folder: Path) -> dict[str, Entry]:
    """The packages in ``folder`` by name; of a folder and an archive of one name the folder. Raises OSError."""
    found: dict[str, Entry] = {}
    with os.scandir(folder) as children:
        for child in sorted(children, key=lambda child: child.name):
            entry = None if is_junk(child.name) else look(Path(child.path))
            if entry is not None and (entry.name not in found or entry.path.is_dir()):
                found[entry.name] = entry
    return found


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
        files = {child.name: child for child in children if not child.is_dir()}
    names = [name for name in files if _counts(name, files)]
    if not any(name in PACKAGE_FILES for name in names):
        return None
    about = [(name, files[name].stat()) for name in sorted(names)]
    signature = tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in about)
    return Entry(folder.name, folder, signature, any(map(_is_arriving, files)))


def _counts(name: str, beside: dict[str, os.DirEntry[str]]) -> bool:
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


def archives_beside_folders(folder: Path, entries: dict[str, Entry]) -> Iterator[str]:
    """Files that are passed over, because a folder has their name."""
    for path in folder.iterdir():
        archive = _ARCHIVE.fullmatch(path.name)
        if archive and (entry := entries.get(archive[1])) is not None and entry.path != path:
            yield path.name
