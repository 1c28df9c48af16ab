"""Shows progress on stderr: a live bar in a terminal, elsewhere a line now and then. Knows nothing of torch.

``Display`` is a training run's, ``show`` opens a bar for an evaluation, ``show_progress`` is an upload's line.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

ProgressCallback = Callable[[int, int], None]  # rows done, rows in all
OpenBar = Callable[[str], AbstractContextManager[ProgressCallback]]  # opens a bar under a title
_LINE_EVERY_SECONDS = 10.0


@dataclass(frozen=True)
class StepMetrics:
    """The state of a run after a logged step. ``peak_memory_mb`` is of the device that trains."""

    step: int
    loss: float
    epoch: float
    learning_rate: float
    tokens_per_second: float
    seconds_left: float
    peak_memory_mb: float


class Display(Protocol):
    """Where progress goes."""

    def start(self, total: int, done: int) -> None:
        """A run of ``total`` steps begins, ``done`` of which lie behind it."""
        ...

    def update(self, reading: StepMetrics) -> None:
        """A step was logged."""
        ...

    def message(self, text: str) -> None:
        """Something a person wants to know."""
        ...

    def stop(self) -> None:
        """The run is over."""
        ...


class SilentDisplay:
    """Shows nothing."""

    def start(self, total: int, done: int) -> None:
        """See Display."""

    def update(self, reading: StepMetrics) -> None:
        """See Display."""

    def message(self, text: str) -> None:
        """See Display."""

    def stop(self) -> None:
        """See Display."""


class LineDisplay:
    """Plain lines on stderr, for logs and pipes: the first step, the last, and one every ten seconds."""

    def __init__(self) -> None:
        self._total = 0
        self._next = 0.0

    def start(self, total: int, done: int) -> None:
        """See Display."""
        self._total = total

    def update(self, reading: StepMetrics) -> None:
        """See Display."""
        if time.monotonic() < self._next and reading.step < self._total:
            return
        self._next = time.monotonic() + _LINE_EVERY_SECONDS
        self.message(f"step {reading.step}/{self._total}  {_details(reading)}  eta {_clock(reading.seconds_left)}")

    def message(self, text: str) -> None:
        """See Display."""
        sys.stderr.write(text + "\n")
        sys.stderr.flush()

    def stop(self) -> None:
        """See Display."""


class BarDisplay:
    """A live bar on stderr."""

    def __init__(self, console: Console) -> None:
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[details]}"),
            TimeElapsedColumn(),
            TextColumn("eta"),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._bar.add_task("training", details="")

    def start(self, total: int, done: int) -> None:
        """See Display."""
        self._bar.update(self._task, total=total, completed=done)
        self._bar.start()

    def update(self, reading: StepMetrics) -> None:
        """See Display."""
        self._bar.update(self._task, completed=reading.step, details=_details(reading))

    def message(self, text: str) -> None:
        """See Display."""
        self._bar.console.print(text, markup=False, highlight=False)

    def stop(self) -> None:
        """See Display."""
        self._bar.stop()


def make_display(quiet: bool) -> Display:
    """The display that fits the terminal."""
    if quiet:
        return SilentDisplay()
    console = Console(stderr=True)
    return BarDisplay(console) if console.is_terminal else LineDisplay()


def _details(reading: StepMetrics) -> str:
    return (
        f"loss {reading.loss:.4f}  epoch {reading.epoch:.2f}  lr {reading.learning_rate:.2e}  "
        f"{reading.tokens_per_second:,.0f} tokens/s  memory {reading.peak_memory_mb:,.0f} MB"
    )


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


@contextmanager
def show(title: str) -> Iterator[ProgressCallback]:
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
def silent(_title: str) -> Iterator[ProgressCallback]:
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


def show_progress(sent: int, total: int) -> None:
    """Write one line on stderr that is updated in place; nothing where stderr is no terminal."""
    if sys.stderr.isatty():
        end = "\n" if sent >= total else ""
        sys.stderr.write(f"\ruploading {sent / 1e6:.1f} of {total / 1e6:.1f} MB{end}")
        sys.stderr.flush()
