"""What a process that the launcher started owes it: to end when the launcher is gone, and to leave its error."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from trainer.distributed.launch import ERROR_FILE, LAUNCHER_PIPE


def watch_launcher() -> None:
    """End this process when the launcher that started it, if any, is gone: nobody would hear of it any more."""
    pipe = os.environ.get(LAUNCHER_PIPE)
    if pipe:
        threading.Thread(target=_wait_for_end, args=(int(pipe),), daemon=True).start()


def leave_error(line: str) -> bool:
    """Leave ``line`` for the launcher, which prints one for all; False when there is none."""
    path = os.environ.get(ERROR_FILE)
    if path is None:
        return False
    Path(path).write_text(line, encoding="utf-8")
    return True


def _wait_for_end(pipe: int) -> None:
    os.read(pipe, 1)
    os._exit(1)
