"""What is not trusted yet, or not quite deleted: a folder for each server that shares the directory."""

from __future__ import annotations

import re
import secrets
import shutil
from itertools import count
from pathlib import Path

from filelock import FileLock, Timeout

_INCOMPLETE = re.compile("(?:upload|deleted|fetch)-[0-9a-f]{32}")  # names that nobody but us gives


class Quarantine:
    """The folder ``root/N`` of one server, the first that no other one has, until ``close`` or the end of the process.

    What a crash left there, and in folders whose servers are gone, is deleted; with other names than ours it is the
    operator's, and stays. Raises OSError.
    """

    def __init__(self, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self._root = root
        self.number, self._lock = next(taken for n in count() if (taken := self._take(n)) is not None)
        self.folder = root / str(self.number)
        self.folder.mkdir(exist_ok=True)
        self._clean(self.folder)
        for path in root.iterdir():
            if path.name.isdecimal() and path != self.folder and (taken := self._take(int(path.name))) is not None:
                self._clean(path)
                taken[1].release()

    def close(self) -> None:
        """Let another server have the folder."""
        self._lock.release()

    def new(self, purpose: str) -> Path:
        """A path that is not there, for an ``upload``, something ``deleted`` or a ``fetch``."""
        return self.folder / f"{purpose}-{secrets.token_hex(16)}"

    def discard(self, path: Path) -> None:
        """Delete whatever of the folder ``path`` is, or is in."""
        shutil.rmtree(self.folder / path.relative_to(self.folder).parts[0], ignore_errors=True)

    def _take(self, number: int) -> tuple[int, FileLock] | None:
        lock = FileLock(self._root / f"{number}.lock", mode=0o600, thread_local=False)  # goes with the process, too
        try:
            lock.acquire(blocking=False)
        except Timeout:
            return None
        return number, lock

    def _clean(self, folder: Path) -> None:
        for path in folder.iterdir():
            if _INCOMPLETE.fullmatch(path.name) and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
