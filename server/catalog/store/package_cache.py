"""Copies of packages whose place is an object store: on the disk, the least recently used ones going first."""

from __future__ import annotations

import logging
import os
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from adapters.package.files import sync
from server.catalog.store.quarantine import Quarantine

logger = logging.getLogger(__name__)
_PACKAGE = re.compile("[0-9a-f]{32}")


class PackageCache:
    """Folders called by the ids of their packages, of ``max_bytes`` together (0: no limit).

    Those that are ``held``, or that ``in_use`` names (in any thread), are never removed, whatever they weigh. Raises
    OSError.
    """

    def __init__(
        self, folder: Path, quarantine: Quarantine, max_bytes: int, in_use: Callable[[], Iterable[Path]]
    ) -> None:
        self.folder = folder
        self._in_use = in_use
        self._quarantine = quarantine
        self._max_bytes = max_bytes
        self._held: Counter[Path] = Counter()
        self._changing = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)
        self._sizes = {path: package_bytes(path) for path in folder.iterdir() if _PACKAGE.fullmatch(path.name)}
        self._make_room()

    @contextmanager
    def held(self, place: Path) -> Iterator[None]:
        """Within the block ``place`` is not removed by others' coming."""
        with self._changing:
            self._held[place] += 1
        try:
            yield
        finally:
            with self._changing:
                self._held[place] -= 1

    def touch(self, place: Path) -> bool:
        """Whether the package is here; it has been used now, then."""
        try:
            os.utime(place)
        except FileNotFoundError:
            return False
        return True

    def put(self, package: Path, place: Path) -> None:
        """Move a whole package from quarantine to its ``place``, and let others go that there is no room for."""
        for file in package.iterdir():
            sync(file)
        package.rename(place)
        os.utime(place)
        with self._changing:
            self._sizes[place] = package_bytes(place)
        self._make_room(place)

    def drop(self, place: Path) -> None:
        """Remove a copy, if it is here."""
        with self._changing:
            grave = self._bury(place)
        self._quarantine.discard(grave)

    def _make_room(self, *newest: Path) -> None:
        with self._changing:
            graves = [self._bury(path) for path in self._superfluous(*newest)]
        for grave in graves:
            self._quarantine.discard(grave)

    def _bury(self, place: Path) -> Path:
        grave = self._quarantine.new("deleted")
        with suppress(FileNotFoundError):
            place.rename(grave)
        self._sizes.pop(place, None)
        return grave

    def _superfluous(self, *newest: Path) -> list[Path]:
        """What has to go, by last use."""
        beyond = sum(self._sizes.values()) - self._max_bytes
        if not self._max_bytes or beyond <= 0:
            return []
        kept = {*newest, *self._in_use(), *(path for path, count in self._held.items() if count)}
        leaving = []
        for path in sorted(self._sizes.keys() - kept, key=_last_used):
            if beyond <= 0:
                break
            leaving.append(path)
            beyond -= self._sizes[path]
        if beyond > 0:
            logger.info("the copies of packages that are in use weigh %.1f MB more than allowed", beyond / 1e6)
        return leaving


def package_bytes(package: Path) -> int:
    """What the files of a package weigh."""
    return sum(file.stat().st_size for file in package.rglob("*") if file.is_file())


def _last_used(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
