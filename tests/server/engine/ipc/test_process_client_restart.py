"""When an engine that died is started again."""

from __future__ import annotations

from server.engine.ipc.process_client import RestartPolicy

POLICY = RestartPolicy(first_delay=1, quick_failures=3, slow_delay=60, healthy_seconds=30)


def test_delays_grow_and_then_stay_slow() -> None:
    assert [POLICY.delay(failures) for failures in range(7)] == [0, 1, 2, 4, 60, 60, 60]
    assert [POLICY.given_up(failures) for failures in (3, 4)] == [False, True]


def test_no_quick_delay_exceeds_the_slow_one() -> None:
    policy = RestartPolicy(first_delay=1, quick_failures=20, slow_delay=10)
    assert max(policy.delay(failures) for failures in range(30)) == 10


def test_a_healthy_life_ends_the_row() -> None:
    assert POLICY.failures_after(5, served_seconds=30) == 0
    assert POLICY.failures_after(5, served_seconds=29) == 6
