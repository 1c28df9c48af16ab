"""Packages as archives: unpacks uploads safely, packs packages for publishing. Imports no torch.

Nothing of an archive is trusted: names never become paths (only the few known file names are written, each to a
place of our choosing), every byte that comes out of a decompressor is counted, and links and devices are refused.
"""

from __future__ import annotations

import contextlib
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from adapters.errors import PackageError
from adapters.kinds.config import CONFIG_FILE
from adapters.limits import DEFAULT_LIMITS, PackageLimits
from adapters.package.archive_entries import ArchiveEntry, ReadExactly, iter_tar, iter_zip, looks_like_tar
from adapters.package.files import flat_name, folder_name, is_junk, is_kept, is_package_file, package_files
from adapters.package.gunzip import Gunzip
from adapters.quoting import quote

_NOT_AN_ARCHIVE = "the file is not an archive: a package is a .tar, .tar.gz or .zip of what save_pretrained writes"


def unpack(archive: Path, into: Path, limits: PackageLimits = DEFAULT_LIMITS) -> Path:
    """Unpack the package in ``archive`` below the folder ``into``; return the package's directory.

    The kind of archive is told by content. The package may sit in folders, others below it (checkpoints) are passed
    over. On PackageError, whatever was written is removed again.
    """
    into.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix="unpack-", dir=into))
    with contextlib.ExitStack() as undo:
        undo.callback(shutil.rmtree, scratch)
        try:
            with archive.open("rb") as file:
                budget = _Budget(limits, archive.stat().st_size)
                found = _package_directory(_write_entries(_entries(file, budget), scratch, budget))
        except (EOFError, zlib.error) as error:
            raise PackageError("the archive is damaged or truncated") from error
        undo.pop_all()
    return found


def pack(directory: Path, archive: Path) -> None:
    """Write the package in ``directory`` as a tar to ``archive``: equal packages give equal bytes.

    Raises PackageError when ``directory`` is not a package's.
    """
    if not (directory / CONFIG_FILE).is_file():
        raise PackageError(f"{directory} is not a package: it holds no {CONFIG_FILE}")
    with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, path in package_files(directory).items():
            info = tarfile.TarInfo(folder_name(name))
            info.size, info.mode = path.stat().st_size, 0o644
            with path.open("rb") as file:
                tar.addfile(info, file)


class _Budget:
    """Counts what comes out of an archive."""

    def __init__(self, limits: PackageLimits, packed: int) -> None:
        self.limits = limits
        self.packed = max(packed, 1)
        self._files = 0
        self._bytes = 0

    def count_file(self) -> None:
        self._files += 1
        if self._files > self.limits.max_files:
            raise PackageError(f"the archive holds more than {self.limits.max_files} files")

    def count_bytes(self, count: int) -> None:
        self._bytes += count
        if self._bytes > self.limits.max_bytes:
            raise PackageError(f"the archive is too large: it unpacks to more than {self.limits.max_bytes} bytes")
        allowed = max(self.limits.free_expansion_bytes, self.limits.max_expansion * self.packed)
        if self._bytes > allowed:
            raise PackageError(
                f"the archive is suspicious: it unpacks to more than {self.limits.max_expansion} times its size"
            )


def _entries(file: BinaryIO, budget: _Budget) -> Iterator[ArchiveEntry]:
    start = file.read(512)
    file.seek(0)
    if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return iter_zip(file, budget.limits.max_files, budget.count_bytes)
    if start.startswith(b"\x1f\x8b"):
        unzipped = Gunzip(file, budget.packed)
        if not looks_like_tar(unzipped.peek(512)):
            raise PackageError(_NOT_AN_ARCHIVE)
        return _to_the_end(_counted(unzipped.read, budget))
    if looks_like_tar(start):
        return iter_tar(_counted(file.read, budget))
    raise PackageError(_NOT_AN_ARCHIVE)


def _to_the_end(read: ReadExactly) -> Iterator[ArchiveEntry]:
    """The entries of a tar stream, and then whatever is behind them: gzip's checksum of all comes last."""
    yield from iter_tar(read)
    while read(1 << 20):
        pass


def _counted(read: ReadExactly, budget: _Budget) -> ReadExactly:
    def counted(count: int) -> bytes:
        data = read(count)
        budget.count_bytes(len(data))
        return data

    return counted


@dataclass
class _Folder:
    """A folder of the archive: the names in it, and where the files we may read are written."""

    place: Path
    names: set[str] = field(default_factory=set)


def _write_entries(entries: Iterator[ArchiveEntry], scratch: Path, budget: _Budget) -> dict[str, _Folder]:
    """Write the files that may belong to a package, by folder; other names are only listed."""
    folders: dict[str, _Folder] = {}
    for entry in entries:
        budget.count_file()
        parts = _safe_parts(entry.name)
        if entry.is_folder or not parts or any(map(is_junk, parts)):
            continue
        name, path = parts[-1], "/".join(parts[:-1])
        if (flat := flat_name("/".join(parts[-2:]))) is not None:  # of a folder below the package's own
            name, path = flat, "/".join(parts[:-2])
        if path not in folders:
            folders[path] = _Folder(scratch / str(len(folders)))
            folders[path].place.mkdir()
        if name in folders[path].names and is_package_file(name):
            raise PackageError(f"the archive holds {quote(entry.name)} twice")
        folders[path].names.add(name)
        if is_package_file(name):
            with (folders[path].place / name).open("xb") as out:
                out.writelines(entry.chunks())
    return folders


def _safe_parts(name: str) -> list[str]:
    if not name:
        raise PackageError("the archive holds an entry without a name; pack it again")
    parts = name.replace("\\", "/").split("/")
    if name.startswith(("/", "\\")) or ".." in parts or "\0" in name or parts[0].endswith(":"):
        raise PackageError(f"the archive entry {quote(name)} points outside of the package")
    return [part for part in parts if part not in ("", ".")]


def _package_directory(folders: dict[str, _Folder]) -> Path:
    found = [path for path, folder in folders.items() if CONFIG_FILE in folder.names]
    found = [path for path in found if not any(_is_below(path, other) for other in found)]
    if len(found) > 1:
        named = ", ".join(map(quote, sorted(found)))
        raise PackageError(f"the archive holds {len(found)} packages ({named}); upload them one by one")
    for path in found or folders:  # without any package, the names may still say what is wrong
        for name in sorted(folders[path].names):
            is_kept(name, beside=folders[path].names)
    if not found:
        raise PackageError(f"the archive holds no {CONFIG_FILE} at its top or in a folder")
    return folders[found[0]].place


def _is_below(path: str, other: str) -> bool:
    return path != other and (not other or path.startswith(f"{other}/"))
