"""What a server has done of batches since it started, and what is still to do: read at scrape time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from server.batches.batch import ENDED, BatchStatus

Outcome = Literal["completed", "failed", "expired"]


class BatchFigures:
    """Changed on the event loop, and read in any thread.

    ``counts`` are the batches in the catalog by status, and ``oldest`` when the oldest of them began that has not ended
    (Unix seconds), as they were seen last. ``ended`` are those that ended here, ``requests`` what became of requests
    here, ``running`` how many are sent and not answered.
    """

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.oldest: float | None = None
        self.ended = {status.value: 0 for status in ENDED}
        self.requests: dict[Outcome, int] = {"completed": 0, "failed": 0, "expired": 0}
        self.running = 0
        self._left: dict[str, int] = {}

    @property
    def waiting(self) -> int:
        """Requests of the batches that have begun here, which are not sent yet."""
        return max(sum(list(self._left.values())) - self.running, 0)

    @property
    def oldest_seconds(self) -> float:
        """The age of the oldest batch that has not ended; 0 where there is none."""
        return max(time.time() - self.oldest, 0.0) if self.oldest is not None else 0.0

    @contextmanager
    def doing(self, id: str, left: int) -> Iterator[None]:
        """A batch is done here, of which so many requests have no answer."""
        self._left[id] = left
        try:
            yield
        finally:
            del self._left[id]

    @contextmanager
    def sending(self) -> Iterator[None]:
        """A request is under way."""
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1

    def answered(self, id: str, outcome: Outcome) -> None:
        """One more request of a batch that is done here has its answer."""
        self._left[id] -= 1
        self.requests[outcome] += 1

    def batch_ended(self, status: BatchStatus) -> None:
        """A batch has come to its end."""
        self.ended[status.value] += 1
