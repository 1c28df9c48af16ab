"""Shows an evaluation on stderr: a bar in a terminal, elsewhere a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from trainer.evaluation.types import Progress

_LINE_EVERY_SECONDS = 10.0


@contextmanager
def show(title: str) -> Iterator[Progress]:
    """A bar, or lines, under ``title``; what it gives is told of requests done and requests in all."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines(title)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bar(*columns, TextColumn("eta"), TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def silent(_title: str) -> Iterator[Progress]:
    """Shows nothing."""
    yield lambda _done, _total: None


class _Lines:
    """A line every ten seconds and at the end."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._next = time.monotonic() + _LINE_EVERY_SECONDS

    def __call__(self, done: int, total: int) -> None:
        if done < total and time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _LINE_EVERY_SECONDS
        sys.stderr.write(f"{self._title}: {done} of {total}\n")
        sys.stderr.flush()
