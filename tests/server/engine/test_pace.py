from __future__ import annotations

import pytest

from server.engine import pace as module
from server.engine.pace import Pace


class Clock:
    """In the place of ``time``, in that one module: loops of servers run in other threads, and sleep by ``time``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.rested = 0.0, 0.0
        monkeypatch.setattr(module, "time", self)

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.rested += seconds


@pytest.mark.parametrize("part", [0.0001, 0.002, 0.02])
@pytest.mark.parametrize("busy", [True, False])
def test_two_thirds_of_the_time_are_rest_while_others_are_busy(
    monkeypatch: pytest.MonkeyPatch, part: float, busy: bool
) -> None:
    clock = Clock(monkeypatch)
    pace = Pace(lambda: busy)
    for _ in range(1000):
        clock.now += part
        pace()
    assert clock.rested == pytest.approx(2000 * part if busy else 0.0, rel=0.05)


def test_no_rest_is_long(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    pace = Pace(lambda: True)
    clock.now += 10
    pace()
    assert clock.rested < 0.1
