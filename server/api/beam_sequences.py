"""Runs beam searches over an engine that knows none: each beam's next tokens are a request of one token.

What a beam has is its prompt's continuation, so that all but its last tokens lie in the prefix cache.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Protocol

import msgspec

from server.api.beam_search import BeamSearch
from server.api.job import Job
from server.api.outputs import Completion
from server.engine.ipc.client import EngineClient
from server.engine.messages import EngineRequest, FinishReason, RequestOutput, SamplingParams


class Submits(Protocol):
    """What sequences need of an engine."""

    def submit(
        self, request: EngineRequest, on_end: Callable[[], None], restart: Callable[[], bool]
    ) -> AsyncIterator[RequestOutput]:
        """As ``EngineClient.submit``."""


class BeamEngine(Submits):
    """Takes the sequences of ``job`` in their order; those of one prompt are answered by one search, best first.

    Nothing of a search is told before its end, so that an engine that is lost in between only repeats a step.
    """

    def __init__(self, engine: EngineClient, job: Job) -> None:
        self._engine = engine
        self._job = job
        self._searches: list[_Search] = []
        self._submitted = 0

    def submit(
        self, request: EngineRequest, on_end: Callable[[], None], restart: Callable[[], bool]
    ) -> AsyncIterator[RequestOutput]:
        """The sequence of the next place. Raises EngineUnavailableError when the engine is down."""
        rank = self._submitted % self._job.n
        self._submitted += 1
        if rank == 0:
            self._searches.append(_Search(self._engine, self._job, request))
        return self._searches[-1].place(request.request_id, rank, on_end)


class _Search:
    def __init__(self, engine: EngineClient, job: Job, request: EngineRequest) -> None:
        sampling = job.sampling
        ends = () if sampling.ignore_eos else engine.info.eos_token_ids
        assert job.beams is not None
        self._search = BeamSearch(
            job.beams,
            frozenset(sampling.stop_token_ids) | frozenset(ends),
            sampling.max_tokens,
            sampling.min_tokens,
            sampling.logprobs or 0,
        )
        self._engine, self._request = engine, request
        self._num_logprobs = sampling.logprobs
        self._first = RequestOutput(request_id="")  # of the first step, which computed the prompt
        self._failure: RequestOutput | None = None
        self._readers = 0
        self._task = asyncio.create_task(self._run())
        self._task.add_done_callback(_retrieved)

    def place(self, request_id: str, rank: int, on_end: Callable[[], None]) -> _Place:
        """The reader of the output that comes ``rank``-th."""
        self._readers += 1
        self._task.add_done_callback(lambda _: on_end())
        return _Place(self, request_id, rank)

    async def output(self, request_id: str, rank: int) -> RequestOutput | None:
        """What has become of it; None where nobody waits any more."""
        await asyncio.wait([self._task])
        if self._task.cancelled():
            return None
        self._task.result()
        if self._failure is not None:
            return msgspec.structs.replace(self._failure, request_id=request_id)
        best = self._search.best
        beam = best[min(rank, len(best) - 1)]
        return RequestOutput(
            request_id=request_id,
            token_ids=list(beam.tokens),
            finish_reason=FinishReason.STOP if beam.ended else FinishReason.LENGTH,
            stop_token_id=beam.tokens[-1] if beam.ended else None,
            logprobs=None if self._num_logprobs is None else list(beam.chosen),
            cached_tokens=self._first.cached_tokens,
            queued_seconds=self._first.queued_seconds,
        )

    def leave(self) -> None:
        """One reader less; without any it is given up."""
        self._readers -= 1
        if not self._readers:
            self._task.cancel()

    async def _run(self) -> None:
        search, step = self._search, 0
        sampling = SamplingParams(
            max_tokens=1, temperature=0.0, ignore_eos=True, speculation=False,
            logprobs=max(search.num_top, self._num_logprobs or 0),
        )  # fmt: skip
        while not search.is_over and self._failure is None:
            requests = [
                msgspec.structs.replace(
                    self._request,
                    request_id=f"{self._request.request_id}-{step}-{number}",
                    prompt_ids=[*self._request.prompt_ids, *beam.tokens],
                    sampling=sampling,
                )
                for number, beam in enumerate(search.running)
            ]
            outputs = await self._all(requests)
            if self._failure is None:
                search.advance([output.logprobs[0] for output in outputs if output.logprobs])
            self._first, step = self._first if step else outputs[0], step + 1

    async def _all(self, requests: list[EngineRequest]) -> list[RequestOutput]:
        """What comes of each; what is left of them ends with the first that fails."""
        tasks = [asyncio.create_task(self._one(request)) for request in requests]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _one(self, request: EngineRequest) -> RequestOutput:
        last = RequestOutput(request_id=request.request_id)
        async with aclosing(self._engine.submit(request)) as outputs:  # type: ignore[type-var]
            async for output in outputs:
                last = output
        if last.finish_reason in (FinishReason.ERROR, FinishReason.ABORT):
            self._failure = last
        return last


class _Place(AsyncIterator[RequestOutput]):
    """One output, once its search is over."""

    def __init__(self, search: _Search, request_id: str, rank: int) -> None:
        self._search, self._request_id, self._rank = search, request_id, rank
        self._left = False

    async def __anext__(self) -> RequestOutput:
        if self._left:
            raise StopAsyncIteration
        output = await self._search.output(self._request_id, self._rank)
        if output is None or self._left:
            raise StopAsyncIteration
        await self.aclose()
        return output

    async def aclose(self) -> None:
        """Forget it; harmless after its end."""
        if not self._left:
            self._left = True
            self._search.leave()


def _retrieved(task: asyncio.Task[None]) -> None:
    """Every reader is told of an error, but there may be none left."""
    if not task.cancelled():
        task.exception()


def best_told(job: Job, completions: list[Completion]) -> tuple[Job, list[Completion]]:
    """Of ``completions`` those that are answered, and the job that they would be all of."""
    if job.beams is None or job.beams.told == job.n:
        return job, completions
    told = job.beams.told
    kept = [
        replace(one, index=one.index // job.n * told + one.index % job.n)
        for one in completions
        if one.index % job.n < told
    ]
    return replace(job, n=told), kept
