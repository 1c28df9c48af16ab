"""What a server has done of fine-tuning jobs since it started, and how far those are that run: read at scrape time."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from server.catalog.jobs import JobEvent
from server.fine_tuning.job import ENDED, Status


@dataclass
class Progress:
    """How far one run is. Losses are None before any was told."""

    began: float = field(default_factory=time.monotonic)
    step: int = 0
    steps: int = 0
    train_loss: float | None = None
    valid_loss: float | None = None

    @property
    def share(self) -> float:
        """Of its steps those that are done, 0 to 1."""
        return min(self.step / self.steps, 1.0) if self.steps else 0.0


class JobFigures:
    """Changed on the event loop, and read in any thread.

    ``counts`` are the jobs in the catalog by status, as they were seen last; ``ended`` those that ended here,
    ``tokens`` those that were trained on here.
    """

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.ended = {status.value: 0 for status in ENDED}
        self.tokens = 0
        self._seconds = 0.0
        self._running: dict[str, Progress] = {}

    @property
    def running(self) -> list[tuple[str, Progress]]:
        """The runs under way, by job."""
        return list(self._running.items())

    @property
    def seconds(self) -> float:
        """That runs have taken so far, those under way included."""
        return self._seconds + sum(time.monotonic() - progress.began for _, progress in self.running)

    def begin(self, id: str) -> None:
        """A run of that job begins."""
        self._running[id] = Progress()

    def told(self, id: str, events: list[JobEvent], tokens: int) -> None:
        """A run has told of steps, which were of so many ``tokens``."""
        progress = self._running[id]
        self.tokens += tokens
        for data in (event.data for event in events if event.data):
            progress.step, progress.steps = int(data["step"]), int(data["total_steps"])
            progress.train_loss = data.get("train_loss", progress.train_loss)
            progress.valid_loss = data.get("valid_loss", progress.valid_loss)

    def end(self, id: str) -> None:
        """The run is over, be the job or not."""
        self._seconds += time.monotonic() - self._running.pop(id).began

    def job_ended(self, status: Status) -> None:
        """A job has come to its end."""
        self.ended[status.value] += 1
