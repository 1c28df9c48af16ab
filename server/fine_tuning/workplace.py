"""Where a server keeps the jobs that it does: a folder of its own, which outlives it and which its next start takes up.

Several servers may share a data directory: each has another folder, until the end of its process.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Container
from itertools import count
from pathlib import Path

from filelock import FileLock, Timeout

from server.catalog.store import disk_errors

_ID_FILE = "place"


class Workplace:
    """The first folder ``root/N`` that no other process has. ``id`` is what the catalog knows it by. Raises OSError."""

    def __init__(self, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        for number in count():
            lock = FileLock(root / f"{number}.lock", mode=0o600, thread_local=False)
            try:
                lock.acquire(blocking=False)
            except Timeout:
                continue
            self._lock = lock
            break
        self.folder = root / str(number)
        self.folder.mkdir(exist_ok=True)
        named = self.folder / _ID_FILE
        if not named.is_file():
            scratch = self.folder / f"{_ID_FILE}.part"
            scratch.write_text(secrets.token_hex(16))
            scratch.rename(named)
        self.id = named.read_text().strip()

    def close(self) -> None:
        """Let another process have the folder."""
        self._lock.release()

    def of(self, job: str) -> Path:
        """The folder of one job."""
        return self.folder / job

    @disk_errors()
    def make(self, job: str) -> Path:
        """The folder of one job, which is there then."""
        path = self.of(job)
        path.mkdir(mode=0o700, exist_ok=True)
        return path

    def remove(self, job: str) -> None:
        """Delete what there is of a job."""
        shutil.rmtree(self.of(job), ignore_errors=True)

    def jobs(self) -> list[str]:
        """The jobs that have folders."""
        return [path.name for path in self.folder.iterdir() if path.is_dir()]

    def clean(self, kept: Container[str]) -> None:
        """Delete the folders of all jobs that are not ``kept``."""
        for job in self.jobs():
            if job not in kept:
                self.remove(job)
