"""Adapter packages on disk: uploads in quarantine, adopted packages under opaque ids.

Names from outside never become paths. Every call blocks on the disk: run it off the event loop. Knows no registry.
"""

from __future__ import annotations

import re
import secrets
import shutil
from collections.abc import Collection
from pathlib import Path

from filelock import FileLock, Timeout

from adapters.errors import PackageError
from adapters.package.archive import unpack
from adapters.package.files import PACKAGE_FILES, is_kept, sync
from server.errors import EngineStartError

_OPAQUE = re.compile("[0-9a-f]{32}")


class AdapterStore:
    """Two folders below ``root``: ``quarantine`` for what is not trusted yet, ``packages`` for what is served.

    ``root`` belongs to one store at a time, until ``close`` or the end of the process. Raises EngineStartError when
    another has it, or when it cannot be written to.
    """

    def __init__(self, root: Path) -> None:
        self._quarantine = root / "quarantine"
        self._packages = root / "packages"
        try:
            for folder in (self._quarantine, self._packages):
                folder.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(root / "lock", mode=0o600, thread_local=False)  # goes with the process, too
            self._lock.acquire(blocking=False)
        except Timeout as error:
            raise EngineStartError(f"{root} is in use by another server; give this one its own --data-dir") from error
        except OSError as error:
            raise EngineStartError(f"cannot keep adapters in {root}: {error.strerror}") from error

    def close(self) -> None:
        """Let another store have ``root``."""
        self._lock.release()

    def sweep(self, known: Collection[Path]) -> None:
        """Delete what an earlier server left: everything in quarantine, and packages other than the ``known`` ones."""
        for path in (*self._quarantine.iterdir(), *self._packages.iterdir()):
            if _OPAQUE.fullmatch(path.name) and path not in known:  # other names are not ours to delete
                shutil.rmtree(path, ignore_errors=True)

    def new_quarantine(self) -> Path:
        """An empty folder for one upload; ``discard`` it, or anything below it, in the end."""
        path = self._quarantine / _opaque_name()
        path.mkdir(mode=0o700)
        return path

    def stage_copy(self, source: Path) -> Path:
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

    def adopt(self, package: Path) -> Path:
        """Move a package from quarantine to its place, durably; returns the place."""
        assert package.is_relative_to(self._quarantine), f"{package} is not in quarantine"
        for file in package.iterdir():
            sync(file)
        sync(package)
        target = self._packages / _opaque_name()
        package.rename(target)
        sync(self._packages)
        return target

    def delete(self, path: Path) -> None:
        """Delete an adopted package; a crash half-way leaves nothing that looks like one. Absent ones are fine."""
        assert path.parent == self._packages, f"{path} is not an adopted package"
        grave = self._quarantine / _opaque_name()
        if path.exists():
            path.rename(grave)
            shutil.rmtree(grave)


def _opaque_name() -> str:
    return secrets.token_hex(16)


def _copy_package(source: Path, target: Path) -> None:
    names = sorted(child.name for child in source.iterdir() if child.is_file())
    for name in names:
        is_kept(name, beside=names)  # refuses what would silently change the adapter if it were left out
    for name in PACKAGE_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
