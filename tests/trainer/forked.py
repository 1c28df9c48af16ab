"""Commands in processes of their own, forked from one that has imported the trainer: that takes seconds, once."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

METHOD: Final = "forkserver"
_FORKED = multiprocessing.get_context(METHOD)
_FORKED.set_forkserver_preload(["tests.trainer.preloaded"])


class ForkedCommand:
    """``hotswap ARGV``, begun with ``first()``; what it writes goes to two files in ``folder``."""

    def __init__(self, folder: Path, *argv: str, first: Callable[[], None] | None = None) -> None:
        self._written = [folder / "stdout", folder / "stderr"]
        self._process = _FORKED.Process(target=_run, args=(argv, first, self._written))
        self._process.start()

    def poll(self) -> int | None:
        """Its exit code, once it has ended."""
        code: int | None = self._process.exitcode
        return code

    def send_signal(self, number: signal.Signals) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def communicate(self, timeout: float) -> tuple[str, str]:
        """Wait for its end; what it wrote to stdout and stderr."""
        self._process.join(timeout)
        if self.poll() is None:
            self._process.kill()
            raise AssertionError("the process did not end")
        out, err = (file.read_text(encoding="utf-8") for file in self._written)
        return out, err


def _run(argv: tuple[str, ...], first: Callable[[], None] | None, written: list[Path]) -> None:
    for number, file in enumerate(written, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    from hotswap.cli import main

    if first is not None:
        first()
    sys.exit(main(argv))
