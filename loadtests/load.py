"""How calls are let loose: a closed loop of workers, or an open loop of timed arrivals.

It knows nothing of what a call is made of.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import aiohttp

from loadtests.client import Outcome, Target, ask
from loadtests.workloads import Call

Done = Callable[[Outcome], None]


@dataclass(frozen=True)
class Until:
    """When to start no more calls: after ``requests`` of them, or ``seconds`` from the start, whichever is first."""

    requests: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        if self.requests is None and self.seconds is None:
            raise ValueError("give a number of requests or a duration")

    def is_over(self, taken: int, seconds: float) -> bool:
        """Whether the next call, after ``taken`` others and at ``seconds``, is one too many."""
        enough = self.requests is not None and taken >= self.requests
        return enough or (self.seconds is not None and seconds >= self.seconds)

    def limit(self, calls: Iterator[Call], begin: float) -> Iterator[Call]:
        """``calls`` until the limit; the clock, which showed ``begin`` at the start, is read as each is taken."""
        for taken, call in enumerate(calls):
            if self.is_over(taken, time.perf_counter() - begin):
                return
            yield call


@dataclass(frozen=True)
class Driver:
    """Makes calls at one server; ``done`` hears of every outcome as it comes."""

    session: aiohttp.ClientSession
    target: Target
    done: Done = lambda _: None

    async def closed_loop(self, calls: Iterator[Call], concurrency: int, until: Until) -> list[Outcome]:
        """``concurrency`` workers, each making its next call when its last one ended."""
        outcomes: list[Outcome] = []
        todo = until.limit(calls, time.perf_counter())

        async def worker() -> None:
            for call in todo:
                await self._one(call, None, outcomes)

        await asyncio.gather(*(worker() for _ in range(concurrency)))
        return outcomes

    async def open_loop(self, calls: Iterator[Call], arrivals: Iterator[float], until: Until) -> list[Outcome]:
        """One call at each arrival time, however many still run; latency counts from when the call was due."""
        outcomes: list[Outcome] = []
        begin = time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            for number, (call, arrival) in enumerate(zip(calls, arrivals, strict=False)):
                if until.is_over(number, arrival):
                    break
                await asyncio.sleep(max(0.0, begin + arrival - time.perf_counter()))
                tasks.create_task(self._one(call, begin + arrival, outcomes))
        return outcomes

    async def _one(self, call: Call, due: float | None, outcomes: list[Outcome]) -> None:
        outcome = await ask(self.session, self.target, call, start=due)
        outcomes.append(outcome)
        self.done(outcome)
