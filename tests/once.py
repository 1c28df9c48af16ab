"""Things that tests only look at, made once for all workers of a test run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


class Once:
    """A folder that all workers of one test run share; what is in it must not be changed.

    A thing is made under its final path, for it may write down where it lies; a marker beside it says that it is whole.
    """

    def __init__(self, temporary: pytest.TempPathFactory) -> None:
        base = temporary.getbasetemp()
        self.root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "once"
        self.root.mkdir(exist_ok=True)

    def make(self, name: str, make: Callable[[Path], object]) -> Path:
        """``root/name``, made by ``make(path)`` unless a test has asked for it before."""
        path, done = self.root / name, self.root / f"{name}.made"
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.root / f"{name}.lock"):
            if not done.exists():
                shutil.rmtree(path, ignore_errors=True)
                make(path)
                done.touch()
        return path
