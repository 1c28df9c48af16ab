"""Keeps a thread that has much to do in Python from slowing down another, which needs the interpreter's lock often."""

from __future__ import annotations

import time
from collections.abc import Callable

_WORK = 0.001  # seconds without a rest
_REST = 2.0  # times as long as the work before it
_LONGEST_REST = 0.05


class Pace:
    """To be called at every checkpoint of a thread. While ``busy``, two thirds of its time are rest.

    A product of a running step lets go of the lock and waits for it again: beside a thread that never rests each of
    some thousand products takes a switch of threads, and the step ten times as long.
    """

    def __init__(self, busy: Callable[[], bool]) -> None:
        self._busy = busy
        self._since = time.monotonic()

    def __call__(self) -> None:
        """Rest, if it is time to."""
        worked = time.monotonic() - self._since
        if worked < _WORK:
            return
        if self._busy():
            time.sleep(min(_REST * worked, _LONGEST_REST))
        self._since = time.monotonic()
