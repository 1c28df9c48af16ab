from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from loadtests.client import Outcome, Target, open_session
from loadtests.load import Driver, Until
from loadtests.workloads import Call
from tests.loadtests.tiny_server import tiny_server


def endless(*models: str) -> Iterator[Call]:
    return (Call(i, model, f"p{i}") for i, model in enumerate(itertools.cycle(models)))


async def test_closed_loop_makes_each_call_once_with_the_asked_concurrency() -> None:
    heard: list[Outcome] = []
    async with tiny_server(together=4) as (url, seen):
        target = Target(url=url, max_tokens=5)
        async with open_session(target) as session:
            driver = Driver(session, target, heard.append)
            outcomes = await driver.closed_loop(endless("good", "other"), 4, Until(requests=28))
    assert sorted(body["prompt"] for body in seen.bodies) == sorted(f"p{i}" for i in range(28))
    assert seen.per_model == {"good": 14, "other": 14}
    assert seen.most_running == 4
    assert heard == outcomes
    assert {o.error for o in outcomes} == {None}


async def test_a_failing_call_does_not_stop_the_others() -> None:
    async with tiny_server() as (url, _):
        target = Target(url=url, max_tokens=1)
        async with open_session(target) as session:
            outcomes = await Driver(session, target).closed_loop(
                endless("good", "missing", "cut"), 3, Until(requests=12)
            )
    assert sorted(str(o.error) for o in outcomes) == ["None"] * 4 + ["cut_off"] * 4 + ["http_404"] * 4


async def test_open_loop_starts_calls_when_due_and_counts_latency_from_then() -> None:
    async with tiny_server() as (url, seen):
        target = Target(url=url, max_tokens=1)
        async with open_session(target) as session:
            due = [0.0, 0.01, 0.01, 0.05, 9.0]
            outcomes = await Driver(session, target).open_loop(endless("good"), iter(due), Until(seconds=1.0))
    assert len(outcomes) == len(seen.bodies) == 4  # the one due at 9 s is past the limit, and is not waited for
    starts = sorted(o.start for o in outcomes)
    assert [start - starts[0] for start in starts] == pytest.approx(due[:4])


async def test_open_loop_does_not_wait_for_answers() -> None:
    async with tiny_server(together=20) as (url, seen):  # answers none before it has been asked 20 times
        target = Target(url=url, max_tokens=1)
        async with open_session(target) as session:
            due = itertools.repeat(0.0)
            outcomes = await Driver(session, target).open_loop(endless("good"), due, Until(requests=20))
    assert seen.most_running == 20
    assert {o.error for o in outcomes} == {None}


def test_a_limit_is_required() -> None:
    with pytest.raises(ValueError, match="requests or a duration"):
        Until()


def test_the_limit_is_the_first_of_both() -> None:
    until = Until(requests=3, seconds=2.0)
    assert [until.is_over(2, 1.9), until.is_over(3, 0.0), until.is_over(0, 2.0)] == [False, True, True]
