"""Adapter packages on disk: uploads in quarantine, adopted packages under opaque ids.

Names from outside never become paths. Every call blocks on the disk: run it off the event loop. Knows no registry; a
catalog that outlives the process would say which packages are whose, and take ``found`` into service.
"""

from __future__ import annotations

import errno
import filecmp
import logging
import re
import secrets
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from adapters.errors import PackageError
from adapters.package.archive import unpack
from adapters.package.files import PACKAGE_FILES, is_kept, sync
from server.errors import BudgetError, EngineStartError, StoreError, StoreFullError

logger = logging.getLogger(__name__)
_PACKAGE = re.compile("[0-9a-f]{32}")
_INCOMPLETE = re.compile("(?:upload|deleted)-[0-9a-f]{32}")  # names that nobody but us gives
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@contextmanager
def disk_errors() -> Iterator[None]:
    """Let what the disk refuses, in writing or in reading, be a StoreError or StoreFullError. Also a decorator."""
    try:
        yield
    except (OSError, PackageError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        of_client = isinstance(cause, (ConnectionError, TimeoutError))
        if not isinstance(cause, OSError) or cause.errno is None or of_client:
            raise
        raise _store_error(cause) from error


def _store_error(error: OSError) -> StoreError:
    logger.error("the disk of --data-dir: %s", error)
    reason = error.strerror or "unknown error"
    if error.errno in _NO_ROOM:
        return StoreFullError(
            f"there is no room for the adapter's files ({reason}); delete versions that nobody needs, or give "
            "--data-dir more room"
        )
    return StoreError(f"the adapter's files cannot be kept ({reason}); look at the disk of --data-dir")


@dataclass(frozen=True)
class Found:
    """Packages that an earlier server left in ``folder`` and that nothing serves now: how many, and their bytes."""

    folder: Path
    count: int
    nbytes: int


class AdapterStore:
    """Two folders below ``root``: ``quarantine`` for what is not trusted yet, ``packages`` for what is served.

    ``root`` belongs to one store at a time, until ``close`` or the end of the process; what an earlier one left stays,
    and counts towards ``max_bytes`` (0: no limit), which all packages together may weigh. Raises EngineStartError when
    another store has ``root``, or when it cannot be written to. Later faults of the disk are StoreErrors.
    """

    def __init__(self, root: Path, *, max_bytes: int = 0) -> None:
        self._quarantine = root / "quarantine"
        self._packages = root / "packages"
        self._max_bytes = max_bytes
        self._changing = threading.Lock()
        try:
            for folder in (self._quarantine, self._packages):
                folder.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(root / "lock", mode=0o600, thread_local=False)  # goes with the process, too
            self._lock.acquire(blocking=False)
            self._sizes = self._look_around()
        except Timeout as error:
            raise EngineStartError(f"{root} is in use by another server; give this one its own --data-dir") from error
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise EngineStartError(f"cannot keep adapters in {root}: {reason}; choose another --data-dir") from error
        self._left = frozenset(self._sizes)  # by an earlier server
        self._unclaimed = set(self._left)

    def close(self) -> None:
        """Let another store have ``root``."""
        self._lock.release()

    def place(self, package: str) -> Path:
        """Where the files of the package of that id are."""
        return self._packages / package

    @property
    def found(self) -> Found:
        """What an earlier server left and nobody has uploaded again."""
        return Found(self._packages, len(self._unclaimed), sum(self._sizes[path] for path in self._unclaimed))

    @disk_errors()
    def new_quarantine(self) -> Path:
        """An empty folder for one upload; ``discard`` it, or anything below it, in the end."""
        path = self._quarantine / f"upload-{secrets.token_hex(16)}"
        path.mkdir(mode=0o700)
        return path

    @disk_errors()
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
                _check_readable(source)
                return unpack(source, place)
        except BaseException:
            self.discard(place)
            raise
        self.discard(place)
        raise PackageError(f"{source} is neither a directory nor an archive")

    def discard(self, path: Path) -> None:
        """Delete the whole quarantine folder that ``path`` is or was in."""
        shutil.rmtree(self._quarantine / path.relative_to(self._quarantine).parts[0], ignore_errors=True)

    @disk_errors()
    def adopt(self, package: Path, name: str | None = None) -> Path:
        """Move a package from quarantine to its place, durably; returns the place. All or nothing.

        Its id, the last part of the place, is ``name`` or drawn. Raises BudgetError as well.
        """
        assert package.is_relative_to(self._quarantine), f"{package} is not in quarantine"
        target = self.place(name or secrets.token_hex(16))
        with self._changing:
            left = self._unclaimed if name is None else ()
            if (twin := next((path for path in left if _same_files(path, package)), None)) is not None:
                self._unclaimed.remove(twin)
                return twin
            self._check_budget(nbytes := _size(package))
            self._sizes[target] = nbytes
        try:
            for file in package.iterdir():
                sync(file)
            sync(package)
            package.rename(target)
            sync(self._packages)
        except BaseException:
            shutil.rmtree(target, ignore_errors=True)
            del self._sizes[target]
            raise
        return target

    def undo_adopt(self, package: Path) -> None:
        """Delete an adopted package that was refused in the end, but not what an earlier server left."""
        if package not in self._left:
            self.delete(package)
            return
        with self._changing:
            self._unclaimed.add(package)

    @disk_errors()
    def delete(self, path: Path) -> None:
        """Delete an adopted package; a crash half-way leaves nothing that looks like one. Absent ones are fine."""
        assert path.parent == self._packages, f"{path} is not an adopted package"
        if path.exists():
            grave = self._quarantine / f"deleted-{secrets.token_hex(16)}"
            try:
                path.rename(grave)
            except OSError:
                grave = path  # even a disk that takes no new name may let go of files
            _remove_tree(grave)
        self._sizes.pop(path, None)

    def _look_around(self) -> dict[Path, int]:
        """See that we can write, end what a crash left half done, and return the packages that are here.

        Only folders with names that we alone give, in quarantine, are deleted: uploads that were never accepted, and
        packages whose deletion had begun. Everything else is the operator's.
        """
        for path in self._quarantine.iterdir():
            if _INCOMPLETE.fullmatch(path.name) and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
        for folder in (self._quarantine, self._packages):
            probe = folder / f"upload-{secrets.token_hex(16)}"
            probe.mkdir(mode=0o700)
            probe.rmdir()
        return {
            path: _size(path) for path in self._packages.iterdir() if _PACKAGE.fullmatch(path.name) and path.is_dir()
        }

    def _check_budget(self, nbytes: int) -> None:
        kept = sum(self._sizes.values())
        if self._max_bytes and kept + nbytes > self._max_bytes:
            found = self.found
            left = f", {found.nbytes / 1e6:.1f} MB of it left by an earlier server" if found.count else ""
            raise BudgetError(
                f"the adapter's files weigh {nbytes / 1e6:.1f} MB, and those kept {kept / 1e6:.1f} of "
                f"{self._max_bytes / 1e6:.1f} MB (--max-stored-gb){left}. Delete versions (DELETE "
                "/v1/adapters/NAME/versions/VERSION), or raise it",
                code="storage_budget_exceeded",
            )


def _remove_tree(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()  # whatever stands in the place of a package


def _size(package: Path) -> int:
    return sum(file.stat().st_size for file in package.rglob("*") if file.is_file())


def _same_files(left: Path, right: Path) -> bool:
    """Whether two packages hold the same files; one that cannot be read is not the same."""
    try:
        names = sorted(file.name for file in left.iterdir())
        return names == sorted(file.name for file in right.iterdir()) and all(
            filecmp.cmp(left / name, right / name, shallow=False) for name in names
        )
    except OSError:
        return False


def _check_readable(file: Path) -> None:
    """Raise PackageError for a file of the operator's that is not ours to read."""
    try:
        file.open("rb").close()
    except OSError as error:
        raise PackageError.unreadable(file.name, error) from None  # no fault of our disk


def _copy_package(source: Path, target: Path) -> None:
    names = sorted(child.name for child in source.iterdir() if child.is_file())
    for name in names:
        is_kept(name, beside=names)  # refuses what would silently change the adapter if it were left out
    for name in PACKAGE_FILES:
        if (source / name).is_file():
            _check_readable(source / name)
            shutil.copyfile(source / name, target / name)
