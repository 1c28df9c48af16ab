"""Answers a copy of a request as another version would have: its own template, tokenizer and ends, the same choices."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from collections.abc import Sequence as Row
from dataclasses import replace

import msgspec

from server.adapter_key import AdapterKey
from server.api.context import ServerContext
from server.api.generation import Generation, Sequence
from server.api.job import Job
from server.api.shadow import Answered
from server.catalog.lease import Lease

LAST = -1_000_000  # a priority below all that an operator can give
Prepare = Callable[[AdapterKey | None, float], Awaitable[Job]]


class _Uncounted:
    """A copy is no client's request: nothing of it goes into the latencies of its version, and it takes no place."""

    def tokens(self, count: int, *, queued_seconds: float = 0.0) -> None:
        """Nothing."""

    def drafts(self, drafted: int, accepted: int) -> None:
        """Nothing."""

    def preempted(self, times: int) -> None:
        """Nothing."""

    def restart(self) -> None:
        """Nothing."""

    def finish(self, reason: str, prompt_tokens: int) -> None:
        """Nothing."""

    def left(self) -> None:
        """Nothing."""


async def answer_copy(
    context: ServerContext, job: Job, original: Row[Answered], prepare: Prepare, lease: Lease
) -> list[Answered]:
    """What the version of ``lease`` answers where ``job`` had ``original`` as its answer.

    It is cut one token behind the longest of these. Raises ServerError, AdapterError or GenerationError.
    """
    copied = _copied(job, await prepare(lease.key, job.started), max(len(one.ids) for one in original))
    requests = copied.requests()
    await context.residency.ensure(lease)
    lease.sequences = len(requests)
    sequences: list[Sequence] = []
    try:
        for index, request in enumerate(requests):
            sequences.append(
                Sequence(
                    context.engine, copied, index, request,
                    clock=_Uncounted(), place=_Uncounted(), on_end=lambda: _ended(lease), whole=True, keep_ids=True,
                )
            )  # fmt: skip
        async for _ in Generation(copied, sequences, []).deltas():
            pass
    finally:
        for sequence in sequences:
            await sequence.close()
    return [Answered(sequence.ids, sequence.seconds) for sequence in sequences]


def _copied(job: Job, copy: Job, longest: int) -> Job:
    """``copy``, drawn as ``job`` was and without the log-probabilities that nobody reads; behind all other requests."""
    most = min(copy.sampling.max_tokens, longest + 1)
    sampling = msgspec.structs.replace(
        copy.sampling,
        seed=job.sampling.seed,
        max_tokens=most,
        min_tokens=min(copy.sampling.min_tokens, most),
        logprobs=None,
        prompt_logprobs=None,
    )
    return replace(
        copy,
        sampling=sampling,
        cache_salt=job.cache_salt,
        tenant=job.tenant,
        weight=job.weight,
        priority=job.priority - 1,  # behind everything that somebody waits for
        echo=False,
        prompt_logprobs=None,
    )


def _ended(lease: Lease) -> None:
    lease.sequences -= 1
