"""The packages of a server: from quarantine to their place under an opaque id, and away again."""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import shutil
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import TypeVar
from weakref import WeakValueDictionary

from adapters.errors import PackageError
from adapters.package.archive import unpack
from adapters.package.files import is_kept, package_files, sync
from server.catalog.store.faults import disk_errors
from server.catalog.store.object_store import ObjectStore, mark_of
from server.catalog.store.package_cache import PackageCache, package_bytes
from server.catalog.store.quarantine import Quarantine
from server.errors import BudgetError, EngineStartError, StoreError

T = TypeVar("T")
_PACKAGE = re.compile("[0-9a-f]{32}")
_WORKERS = 8


class AdapterStore:
    """``root/quarantine`` is for what is not trusted yet, ``root/packages`` for what is served.

    With ``artifacts`` new packages are kept there, and ``root/cache`` has copies of ``max_cached_bytes`` (0: no limit);
    copies that ``in_use`` names, when it is asked in any thread, stay. Several servers may share ``root``: each has a
    quarantine, and copies, of its own, until ``close`` or the end of its process. All packages together may weigh
    ``max_bytes`` (0: no limit), whoever brought them. Raises EngineStartError when ``root`` cannot be written to. Later
    faults of the disk, or of ``artifacts``, are StoreErrors.
    """

    def __init__(
        self,
        root: Path,
        *,
        max_bytes: int = 0,
        artifacts: ObjectStore | None = None,
        max_cached_bytes: int = 0,
        in_use: Callable[[], Iterable[Path]] = tuple,
    ) -> None:
        self.root = root
        self._packages = root / "packages"
        self._max_bytes = max_bytes
        self._artifacts = artifacts
        self._cache: PackageCache | None = None
        self._threads = ThreadPoolExecutor(_WORKERS, thread_name_prefix="store")
        self._changing = threading.Lock()
        self._moving: dict[str, int] = {}  # bytes of what is on its way to its place
        self._sizes: dict[str, int] = {}  # of packages on the disk, which do not change
        self._fetching: WeakValueDictionary[str, threading.Lock] = WeakValueDictionary()
        try:
            self._packages.mkdir(parents=True, exist_ok=True)
            copies = root / "cache"
            self._quarantine = Quarantine(root / "quarantine", gone=lambda number: _forget(copies / str(number)))
            for folder in (self._quarantine.folder, self._packages):
                _probe(folder)
            if artifacts is not None:
                own = copies / str(self._quarantine.number)
                self._cache = PackageCache(own, self._quarantine, max_cached_bytes, in_use)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise EngineStartError(f"cannot keep adapters in {root}: {reason}; choose another --data-dir") from error
        if artifacts is not None:
            artifacts.check()

    def close(self) -> None:
        """Let another store have the quarantine."""
        self._threads.shutdown(wait=False)
        self._quarantine.close()

    async def run(self, work: Callable[..., T], *args: object) -> T:
        """What ``work``, which may wait for an object store, returns: in threads that nothing else waits for."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(work, *args))

    def packages(self) -> dict[str, int]:
        """The bytes of all packages that are kept, by id: those of other servers too. Raises StoreError."""
        known, sizes = self._sizes, {}
        with disk_errors():
            for path in self._packages.iterdir():
                if _PACKAGE.fullmatch(path.name):
                    with suppress(FileNotFoundError):  # another server deletes it just now
                        sizes[path.name] = known.get(path.name) or package_bytes(path)
        self._sizes = sizes
        return sizes if self._artifacts is None else {**self._artifacts.sizes(), **sizes}

    def place(self, package: str) -> Path:
        """Where the files of the package of that id are, or will be once they are fetched."""
        here = self._packages / package
        return here if self._cache is None or here.is_dir() else self._cache.folder / package

    @disk_errors()
    def check(self, path: Path) -> None:
        """See that the folder of an adopted package's place can be read: else the disk is at fault, not the package."""
        os.scandir(path.parent).close()

    # ---- quarantine ----

    @disk_errors()
    def new_quarantine(self) -> Path:
        """An empty folder for one upload; ``discard`` it, or anything below it, in the end."""
        path = self._quarantine.new("upload")
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
        self._quarantine.discard(path)

    # ---- packages ----

    @disk_errors()
    def adopt(self, package: Path, name: str | None = None) -> Path:
        """Move a package from quarantine to its place, durably; returns the place. All or nothing.

        Its id, the last part of the place, is ``name`` (32 lower-case hex digits) or drawn. What a crash leaves half
        done under that id, ``delete`` undoes. Raises BudgetError as well.
        """
        assert package.is_relative_to(self._quarantine.folder), f"{package} is not in quarantine"
        with self._changing:
            name = name or secrets.token_hex(16)
            self._check_budget(nbytes := package_bytes(package))
            self._moving[name] = nbytes
        try:
            if self._artifacts is None:
                self._move(package, self.place(name))
            else:
                self._send(package, name)
        finally:
            del self._moving[name]
        return self.place(name)

    @disk_errors()
    def delete(self, path: Path) -> None:
        """Delete an adopted package; a crash half-way leaves nothing that looks like one. Absent ones are fine."""
        assert self._is_elsewhere(path) or path.parent == self._packages, f"{path} is not an adopted package"
        if self._is_elsewhere(path):
            self._remove_artifact(path.name)
            return
        self.check(path)  # else what is only out of sight would count as deleted
        if path.exists():
            grave = self._quarantine.new("deleted")
            try:
                path.rename(grave)
            except OSError:
                grave = path  # even a disk that takes no new name may let go of files
            _remove_tree(grave)

    # ---- copies of what is elsewhere ----

    def held(self, path: Path) -> AbstractContextManager[None]:
        """Within the block the files of an adopted package stay, once they are there. Does not block."""
        return nullcontext() if self._cache is None else self._cache.held(path)

    @disk_errors()
    def fetch(self, path: Path) -> None:
        """Let the files of an adopted package be in its place. Raises PackageError when they cannot be had any more."""
        if self._artifacts is None or self._cache is None or not self._is_elsewhere(path):
            return
        with self._fetching.setdefault(path.name, threading.Lock()):
            if self._cache.touch(path):
                return
            scratch = self._quarantine.new("fetch")
            scratch.mkdir(mode=0o700)
            try:
                self._artifacts.get(path.name, scratch)
                self._cache.put(scratch, path)
            finally:
                self._quarantine.discard(scratch)

    @disk_errors()
    def mend(self, path: Path) -> bool:
        """Fetch an adopted package again if the copy that is here is not what was kept; False when there is no need."""
        if self._artifacts is None or self._cache is None or not self._is_elsewhere(path):
            return False
        if path.is_dir() and mark_of(path) == self._artifacts.mark(path.name):
            return False
        self._cache.drop(path)
        self.fetch(path)
        return True

    # ---- inside ----

    def _is_elsewhere(self, path: Path) -> bool:
        """Whether the package of that place is kept in the object store."""
        return self._cache is not None and path.parent == self._cache.folder

    def _move(self, package: Path, target: Path) -> None:
        try:
            for file in package.iterdir():
                sync(file)
            sync(package)
            package.rename(target)
            sync(self._packages)
        except BaseException:
            shutil.rmtree(target, ignore_errors=True)
            raise

    def _send(self, package: Path, name: str) -> None:
        assert self._artifacts is not None
        assert self._cache is not None
        try:
            self._artifacts.put(name, package, mark_of(package))
            self._cache.put(package, self.place(name))
        except BaseException:
            with suppress(StoreError):
                self._remove_artifact(name)
            raise

    def _remove_artifact(self, name: str) -> None:
        assert self._artifacts is not None
        assert self._cache is not None
        self._cache.drop(self.place(name))
        self._artifacts.remove(name)

    def _check_budget(self, nbytes: int) -> None:
        if not self._max_bytes:
            return
        kept = sum({**self.packages(), **self._moving}.values())
        if kept + nbytes > self._max_bytes:
            raise BudgetError(
                f"the adapter's files weigh {nbytes / 1e6:.1f} MB, and those kept {kept / 1e6:.1f} of "
                f"{self._max_bytes / 1e6:.1f} MB (--max-stored-gb). Delete versions (DELETE "
                "/v1/adapters/NAME/versions/VERSION), or raise it",
                code="storage_budget_exceeded",
            )


def _probe(folder: Path) -> None:
    """See that something can be made in ``folder``. Raises OSError."""
    probe = folder / f"upload-{secrets.token_hex(16)}"
    probe.mkdir(mode=0o700)
    probe.rmdir()


def _forget(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def _remove_tree(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)  # whatever stands in the place of a package


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
    for name, path in package_files(source).items():
        _check_readable(path)
        shutil.copyfile(path, target / name)
