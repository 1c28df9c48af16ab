"""When to restart an engine that died. Plain arithmetic, no clock."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RestartPolicy:
    """Delays double from ``first_delay``; after ``quick_failures`` deaths in a row they are ``slow_delay`` for good.

    A life that served for at least ``healthy_seconds`` ends a row: its death is answered at once. All in seconds.
    """

    first_delay: float = 0.25
    quick_failures: int = 6
    slow_delay: float = 60.0
    healthy_seconds: float = 60.0

    def failures_after(self, failures: int, served_seconds: float) -> int:
        """Deaths in a row, after one more life that served that long."""
        return 0 if served_seconds >= self.healthy_seconds else failures + 1

    def delay(self, failures: int) -> float:
        """Seconds to wait before the next start."""
        if failures == 0:
            return 0.0
        if self.given_up(failures):
            return self.slow_delay
        return float(min(self.slow_delay, self.first_delay * 2 ** (failures - 1)))

    def given_up(self, failures: int) -> bool:
        """Whether an operator should look: restarts go on, but slowly."""
        return failures > self.quick_failures
