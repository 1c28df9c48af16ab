"""Adapter packages on disk: uploads in quarantine, adopted packages under opaque ids.

Names from outside never become paths. Every call blocks on the disk: run it off the event loop. Knows no registry.
"""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path

from adapters.archive import unpack
from adapters.errors import PackageError
from adapters.files import PACKAGE_FILES, is_kept


class AdapterStore:
    """Two folders below ``root``: ``quarantine`` for what is not trusted yet, ``adapters`` for what is served.

    ``root`` belongs to one server at a time; what an earlier one left in quarantine is deleted.
    """

    def __init__(self, root: Path) -> None:
        self._quarantine = root / "quarantine"
        self._adapters = root / "adapters"
        shutil.rmtree(self._quarantine, ignore_errors=True)
        for folder in (self._quarantine, self._adapters):
            folder.mkdir(parents=True, exist_ok=True)

    def new_quarantine(self) -> Path:
        """An empty folder for one upload; ``discard`` it, or anything below it, in the end."""
        path = self._quarantine / secrets.token_hex(16)
        path.mkdir(mode=0o700)
        return path

    def bring_in(self, source: Path) -> Path:
        """Copy a package of the operator's, a directory or an archive, to quarantine; returns its directory there.

        Raises PackageError; nothing stays behind then.
        """
        place = self.new_quarantine()
        try:
            if source.is_dir():
                _copy_package(source, place)
                return place
            if source.is_file():
                return unpack(source, place)
        except BaseException:
            self.discard(place)
            raise
        self.discard(place)
        raise PackageError(f"{source} is neither a directory nor an archive")

    def discard(self, path: Path) -> None:
        """Delete the whole quarantine folder that ``path`` is or was in."""
        shutil.rmtree(self._quarantine / path.relative_to(self._quarantine).parts[0], ignore_errors=True)

    def adopt(self, package: Path, digest: str) -> Path:
        """Move a package from quarantine to its place, durably; returns the place."""
        assert package.is_relative_to(self._quarantine), f"{package} is not in quarantine"
        for file in package.iterdir():
            _sync(file)
        _sync(package)
        target = self._adapters / f"{digest[:16]}-{secrets.token_hex(8)}"
        package.rename(target)
        _sync(self._adapters)
        return target

    def delete(self, path: Path) -> None:
        """Delete an adopted package; a crash half-way leaves nothing that looks like one. Absent ones are fine."""
        assert path.parent == self._adapters, f"{path} is not an adopted package"
        grave = self._quarantine / secrets.token_hex(16)
        if path.exists():
            path.rename(grave)
            shutil.rmtree(grave)


def _copy_package(source: Path, target: Path) -> None:
    for name in sorted(child.name for child in source.iterdir() if child.is_file()):
        is_kept(name)  # refuses what would silently change the adapter if it were left out
    for name in PACKAGE_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
