from __future__ import annotations

import math
import threading
import time

import pytest

from adapters.checkpoints import checkpoint
from server.engine.slices import Slices


class Work:
    """Five parts, each on another checkpoint; the last one may fail."""

    def __init__(self, error: Exception | None = None) -> None:
        self.done, self.error, self.let_go = 0, error, False

    def __call__(self) -> None:
        try:
            for _ in range(5):
                checkpoint()
                self.done += 1
            if self.error is not None:
                raise self.error
        finally:
            self.let_go = True


def test_a_slice_ends_at_the_first_checkpoint_after_its_time() -> None:
    work = Work()
    slices = Slices(work)
    assert not slices.begun
    for done in range(5):
        assert not slices.advance(time.monotonic())
        assert work.done == done
    assert slices.advance(time.monotonic())
    assert work.done == 5
    assert slices.advance(time.monotonic()), "and it stays ended"


def test_with_time_enough_it_is_one_slice() -> None:
    work = Work()
    assert Slices(work).advance(math.inf)
    assert work.done == 5


def test_what_it_raises_comes_from_advance_alone() -> None:
    slices = Slices(Work(ValueError("no")))
    slices.advance(time.monotonic())
    slices.finish()
    assert slices.ended
    with pytest.raises(ValueError, match="no"):
        slices.advance(math.inf)


def test_a_closed_one_lets_go_of_what_it_holds() -> None:
    work, threads = Work(), threading.active_count()
    slices = Slices(work)
    slices.advance(time.monotonic())
    slices.close()
    assert work.let_go
    assert work.done == 0
    slices.close()
    Slices(work).close()
    for thread in threading.enumerate():
        if thread.name == "slices":
            thread.join(10)
    assert threading.active_count() <= threads
