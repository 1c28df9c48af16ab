"""All sequences of one job, run together: their deltas in the order they come, all aborted when left early."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field

from server.api.job import Job
from server.api.parts import Parts
from server.api.sequence import Delta, Sequence, TokenEntry
from server.engine.messages import TokenLogprobs


@dataclass
class Usage:
    """Token counts of a job, as they grow."""

    prompt_tokens: int
    cached_tokens: int = 0
    completion: dict[int, int] = field(default_factory=dict)

    def add(self, delta: Delta, n: int) -> None:
        """Take a delta into account. The cached part of a prompt is counted once, not for each of its ``n``."""
        self.completion[delta.index] = delta.completion_tokens
        if delta.first and delta.index % n == 0:
            self.cached_tokens += delta.cached_tokens

    def body(self, index: int | None = None) -> dict[str, object]:
        """OpenAI's usage object; of one sequence when ``index`` is given."""
        completion = sum(self.completion.values()) if index is None else self.completion.get(index, 0)
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": completion,
            "total_tokens": self.prompt_tokens + completion,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
            "completion_tokens_details": {"reasoning_tokens": 0},
        }


@dataclass
class Whole:
    """One finished sequence."""

    index: int
    text: str = ""
    tokens: list[TokenEntry] = field(default_factory=list)
    finish_reason: str | None = None
    prompt_logprobs: list[TokenLogprobs | None] | None = None

    def add(self, delta: Delta) -> None:
        """Append a delta."""
        self.text += delta.text
        self.tokens += delta.tokens
        self.finish_reason = delta.finish_reason
        self.prompt_logprobs = delta.prompt_logprobs or self.prompt_logprobs


class Generation:
    """The running sequences of a job, and the usage so far."""

    def __init__(self, job: Job, sequences: list[Sequence]) -> None:
        self.job = job
        self.usage = Usage(job.prompt_tokens)
        self._sequences = sequences

    async def deltas(self) -> AsyncGenerator[Delta, None]:
        """The deltas of all sequences. The first error of any ends all."""
        if len(self._sequences) == 1:
            merged = self._sequences[0].deltas()
        else:
            merged = _merge([sequence.deltas() for sequence in self._sequences])
        async with aclosing(merged):
            async for delta in merged:
                self.usage.add(delta, self.job.n)
                yield delta

    async def collect(self) -> list[Whole]:
        """Run all sequences to their ends."""
        wholes = [Whole(index) for index in range(len(self._sequences))]
        async for delta in self.deltas():
            wholes[delta.index].add(delta)
        return wholes


@asynccontextmanager
async def running(parts: Parts, job: Job) -> AsyncIterator[Generation]:
    """Submit all sequences of ``job`` at once; abort those that still run when the block is left.

    Raises QueueFullError or EngineUnavailableError before anything runs.
    """
    requests = job.requests()
    with parts.admission.admit(len(requests), job.adapter):
        sequences: list[Sequence] = []
        try:
            for index, request in enumerate(requests):
                clock = parts.metrics.clock(job.adapter, job.started)
                sequences.append(Sequence(parts, job, index, request, clock))
            yield Generation(job, sequences)
        finally:
            for sequence in sequences:
                await sequence.close()


async def _merge(streams: list[AsyncGenerator[Delta, None]]) -> AsyncGenerator[Delta, None]:
    """Deltas of all ``streams`` as they come; a bounded queue, so that a slow reader holds the pumps back."""
    queue: asyncio.Queue[Delta | Exception | None] = asyncio.Queue(maxsize=2 * len(streams))
    pumps = [asyncio.create_task(_pump(stream, queue)) for stream in streams]
    try:
        left = len(pumps)
        while left:
            item = await queue.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                left -= 1
            else:
                yield item
    finally:
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


async def _pump(stream: AsyncGenerator[Delta, None], queue: asyncio.Queue[Delta | Exception | None]) -> None:
    try:
        async with aclosing(stream):
            async for delta in stream:
                await queue.put(delta)
    except Exception as error:  # noqa: BLE001 - handed to the reader, who raises it
        await queue.put(error)
    else:
        await queue.put(None)
