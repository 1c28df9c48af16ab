"""Shows progress on stderr: a live bar in a terminal, elsewhere a line now and then. Knows nothing of torch.

``Display`` is a training run's, ``show_bar`` an evaluation's, ``show_upload`` an upload's line.
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
from typing_extensions import override

ProgressCallback = Callable[[int, int], None]  # rows or bytes: done, in all
OpenBar = Callable[[str], AbstractContextManager[ProgressCallback]]  # opens a bar under a title
LINE_SECONDS = 10.0  # between two lines where no terminal is


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

    def update(self, metrics: StepMetrics) -> None:
        """A step was logged."""
        ...

    def message(self, text: str) -> None:
        """Something a person wants to know."""
        ...

    def stop(self) -> None:
        """The run is over."""
        ...


class SilentDisplay(Display):
    """Shows nothing."""

    @override
    def start(self, total: int, done: int) -> None: ...

    @override
    def update(self, metrics: StepMetrics) -> None: ...

    @override
    def message(self, text: str) -> None: ...

    @override
    def stop(self) -> None: ...


class Throttle:
    """Keeps lines ``seconds`` apart."""

    def __init__(self, seconds: float = LINE_SECONDS, *, at_once: bool = False) -> None:
        """``at_once``: the first line need not wait."""
        self._seconds = seconds
        self._next = time.monotonic() + (0 if at_once else seconds)

    def is_due(self) -> bool:
        """Whether a line may be written now, which the caller does then."""
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + self._seconds
        return True


class LineDisplay(Display):
    """Plain lines on stderr, for logs and pipes: the first step, the last, and one every ten seconds."""

    def __init__(self) -> None:
        self._total = 0
        self._throttle = Throttle(at_once=True)

    @override
    def start(self, total: int, done: int) -> None:
        self._total = total

    @override
    def update(self, metrics: StepMetrics) -> None:
        if self._throttle.is_due() or metrics.step >= self._total:
            left = _clock(metrics.seconds_left)
            self.message(f"step {metrics.step}/{self._total}  {_details(metrics)}  eta {left}")

    @override
    def message(self, text: str) -> None:
        _write_line(text)

    @override
    def stop(self) -> None: ...


class BarDisplay(Display):
    """A live bar on stderr."""

    def __init__(self, console: Console) -> None:
        self._bar = bars(console, "training", "{task.fields[details]}")
        self._task = self._bar.add_task("training", details="")

    @override
    def start(self, total: int, done: int) -> None:
        self._bar.update(self._task, total=total, completed=done)
        self._bar.start()

    @override
    def update(self, metrics: StepMetrics) -> None:
        self._bar.update(self._task, completed=metrics.step, details=_details(metrics))

    @override
    def message(self, text: str) -> None:
        self._bar.console.print(text, markup=False, highlight=False)

    @override
    def stop(self) -> None:
        self._bar.stop()


def make_display(quiet: bool) -> Display:
    """The display that fits the terminal."""
    if quiet:
        return SilentDisplay()
    console = Console(stderr=True)
    return BarDisplay(console) if console.is_terminal else LineDisplay()


def _details(metrics: StepMetrics) -> str:
    return (
        f"loss {metrics.loss:.4f}  epoch {metrics.epoch:.2f}  lr {metrics.learning_rate:.2e}  "
        f"{metrics.tokens_per_second:,.0f} tokens/s  memory {metrics.peak_memory_mb:,.0f} MB"
    )


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def _write_line(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def bars(console: Console, title: str, *details: str) -> Progress:
    """Bars on ``console``: how far, how long and how long still. ``title`` and ``details`` are formats of a task."""
    return Progress(
        TextColumn(title, markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        *map(TextColumn, details),
        TimeElapsedColumn(),
        TextColumn("eta"),
        TimeRemainingColumn(),
        console=console,
    )


@contextmanager
def show_bar(title: str) -> Iterator[ProgressCallback]:
    """A bar under ``title``, or where stderr is no terminal a line every ten seconds and at the end."""
    console = Console(stderr=True)
    if console.is_terminal:
        with bars(console, "{task.description}") as bar:
            task = bar.add_task(title, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
        return
    throttle = Throttle()

    def write(done: int, total: int) -> None:
        if throttle.is_due() or done >= total:
            _write_line(f"{title}: {done} of {total}")

    yield write


@contextmanager
def silent(_title: str) -> Iterator[ProgressCallback]:
    """Shows nothing."""
    yield lambda _done, _total: None


_BAR = 30  # characters of an upload's bar


def show_upload(sent: int, total: int) -> None:
    """Write one line with a bar on stderr that is updated in place; nothing where stderr is no terminal."""
    if sys.stderr.isatty():
        filled = _BAR * sent // max(total, 1)
        end = "\n" if sent >= total else ""
        bar = "\u2501" * filled + " " * (_BAR - filled)
        sys.stderr.write(f"\ruploading {bar} {sent / 1e6:.1f} of {total / 1e6:.1f} MB{end}")
        sys.stderr.flush()
