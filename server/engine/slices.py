"""A piece of work done a slice at a time, wherever it happens to be when a slice ends.

It runs on a thread of its own, but never beside the thread that owns it: one of the two always waits for the other.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable

import torch

from adapters.checkpoints import held_up_by


class Slices:
    """``work`` in slices, which end at its checkpoints. What is not ended must be closed."""

    def __init__(self, work: Callable[[], None]) -> None:
        self.ended = False
        self._work = work
        self._until = math.inf
        self._closed = False
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._go, self._stopped = threading.Semaphore(0), threading.Semaphore(0)

    @property
    def begun(self) -> bool:
        """Whether any of it was done."""
        return self._thread is not None

    def advance(self, until: float) -> bool:
        """Let the work go on to its first checkpoint after ``until`` (monotonic); True when it has ended.

        Raises what the work has raised.
        """
        if not self.ended:
            self._until = until
            self._hand_over()
        if self._error is not None:
            raise self._error
        return self.ended

    def finish(self) -> None:
        """Let the work go on to its end; what it raises comes from ``advance``."""
        if not self.ended:
            self._until = math.inf
            self._hand_over()

    def close(self) -> None:
        """End the work where it is."""
        if self._thread is not None and not self.ended:
            self._closed = True
            self._hand_over()

    def _hand_over(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="slices", daemon=True)
            self._thread.start()
        else:
            self._go.release()
        self._stopped.acquire()

    def _run(self) -> None:
        torch.get_num_threads()  # a thread takes over what was set for the process when it first asks
        try:
            with held_up_by(self._pause):
                self._work()
        except BaseException as error:  # noqa: BLE001 - it belongs to the thread that waits
            self._error = error
        finally:
            self.ended = True
            self._stopped.release()

    def _pause(self) -> None:
        if time.monotonic() >= self._until:
            self._stopped.release()
            self._go.acquire()
        if self._closed:
            raise _ClosedError


class _ClosedError(BaseException):
    """Nobody waits for the work any more."""
