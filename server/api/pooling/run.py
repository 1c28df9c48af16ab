"""From a checked body to pooled outputs: resolves the model, makes the job and runs it, a few prompts at a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

from fastapi import Request
from starlette.responses import Response

from server.adapter_key import AdapterKey
from server.api.auth import caller_of
from server.api.body_limits import forget_body
from server.api.context import Place, ServerContext
from server.api.error_responses import GenerationError
from server.api.event_stream import ClientGone, until_gone
from server.api.generation import resident
from server.api.large_answer import LargeAnswer, json_parts
from server.api.leasing import count_error, leased
from server.api.limits import RequestTicket
from server.api.load_report import load_report
from server.api.pooling.job import PooledJob
from server.api.pooling.wire import PooledBody
from server.api.request_record import MAX_SEQUENCES, RequestRecord
from server.api.respond import GONE_STATUS
from server.api.sharing import Share, deadline_of, share_of
from server.catalog.lease import Lease
from server.catalog.places import ColdStart
from server.engine.ipc.client import LONG_PROMPT
from server.engine.messages import EngineRequest, FinishReason, RequestOutput
from server.errors import EngineUnavailableError, RequestTimeoutError, UnknownModelError
from server.metrics import RequestClock

AT_ONCE = 32  # prompts of one request that the engine is given: enough to fill its steps
Body = TypeVar("Body", bound=PooledBody)
Prepare = Callable[[ServerContext, Body, AdapterKey | None, float], Awaitable[PooledJob]]


@dataclass(frozen=True)
class PooledOutputs:
    """What came of each prompt of ``job``: little-endian float32, vector after vector."""

    job: PooledJob
    vectors: list[bytes]
    cached_tokens: int = 0

    def usage(self) -> dict[str, object]:
        """OpenAI's usage object."""
        tokens = self.job.prompt_tokens
        return {
            "prompt_tokens": tokens,
            "total_tokens": tokens,
            "completion_tokens": 0,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }


@dataclass(frozen=True)
class Binary:
    """An answer that is no JSON: its ``parts``, and what its headers say of them."""

    parts: list[bytes]
    headers: dict[str, str]


Write = Callable[[PooledOutputs], dict[str, Any] | Binary]


async def answer(
    request: Request, context: ServerContext, body: Body, prepare: Prepare[Body], write: Write
) -> Response:
    """The whole life of one request; ``write`` makes the body of its answer, outside of the event loop."""
    forget_body(request)
    work = _Work(request, context, body)
    try:
        return await until_gone(request, work.answer(prepare, write))
    except ClientGone:
        return Response(status_code=GONE_STATUS)
    except Exception as error:
        count_error(request, context, body, work.drawn, error)
        raise


class _Work:
    def __init__(self, request: Request, context: ServerContext, body: PooledBody) -> None:
        self._request, self._context, self._body = request, context, body
        self._started = time.perf_counter()
        self._deadline = deadline_of(request, context.config, body)
        self.drawn: AdapterKey | None = None

    async def answer(self, prepare: Prepare[Any], write: Write) -> Response:
        context, caller = self._context, caller_of(self._request)
        if context.admission.closed_because:
            raise EngineUnavailableError(context.admission.closed_because)
        caller.check_asked(context.registry, self._body)
        with await leased(self._request, context, self._body) as lease:
            self.drawn = lease.key
            share = share_of(caller, context, lease.key)
            with context.limiter.request(share.subjects) as ticket:
                context.residency.want(lease)  # it is loaded while the prompts are prepared
                made = await prepare(context, self._body, lease.key, self._started)
                job = share.job(made, self._deadline)
                run = _Run(context, job, lease, ticket, _width(job, share))
                try:
                    outputs = await run.outputs()
                finally:
                    self._note(job, run)
                context.traffic.figures.served(self.drawn, None, None)
                headers = {**job.headers, **ticket.headers(), **load_report(self._request, context)}
        return await asyncio.to_thread(lambda: _written(write(finished(outputs)), headers))

    def _note(self, job: PooledJob, run: _Run) -> None:
        """What the log line of this request says, and its spans."""
        record: RequestRecord = self._request.scope["state"]["record"]
        record.note_times([clock.times for clock in run.clocks], run.cold)
        record.asked = {"gen_ai.request.model": self._body.named(self._context.base_name)}
        record.facts.update(
            model=job.model,
            adapter=str(self.drawn) if self.drawn else None,
            prompt_tokens=job.prompt_tokens,
            completion_tokens=0,
            cached_tokens=run.cached,
        )


def finished(outputs: PooledOutputs) -> PooledOutputs:
    """``outputs`` behind the layers that they go through here. Blocks."""
    layers = outputs.job.layers
    return outputs if layers is None else replace(outputs, vectors=layers.through(outputs.vectors))


def _written(told: dict[str, Any] | Binary, headers: dict[str, str]) -> Response:
    if isinstance(told, Binary):
        return LargeAnswer(told.parts, {"content-type": "application/octet-stream", **told.headers, **headers})
    return LargeAnswer(json_parts(told), headers)


def _width(job: PooledJob, share: Share) -> int:
    """How many prompts are with the engine at once: no more than whose limits hold may have."""
    limits = [most for one in share.subjects for most in (one.limits.max_concurrency, one.limits.max_queue) if most]
    return max(1, min([AT_ONCE, len(job.prompts), *limits]))


class _Run:
    """All prompts of a job; each of ``width`` places takes one after the other."""

    def __init__(self, context: ServerContext, job: PooledJob, lease: Lease, ticket: RequestTicket, width: int) -> None:
        self._context, self._job, self._lease, self._ticket = context, job, lease, ticket
        self._width = width
        self._vectors = [b""] * len(job.prompts)
        self.cached = 0
        self.clocks: list[RequestClock] = []
        self.cold: ColdStart | None = None

    async def outputs(self) -> PooledOutputs:
        """Run all. The first error of any ends all. Raises as ``server.api.generation.running`` and ``deltas`` do."""
        context, job = self._context, self._job
        self._ticket.admit(self._width, job.prompt_tokens, 0)
        holder = job.tenant, job.adapter.name if job.adapter else ""
        with context.admission.admit(self._width, holder=holder) as places:
            await resident(context, self._lease, job.deadline)
            context.shadows.give_way(context.admission.active)
            self._ticket.used = job.prompt_tokens  # whoever leaves may have had it computed
            self._lease.sequences = self._width
            await self._in_time(places)
        return PooledOutputs(job, self._vectors, self.cached)

    async def _in_time(self, places: list[Place]) -> None:
        waiting = enumerate(self._job.requests())
        tasks = [asyncio.create_task(self._take_turns(i, waiting)) for i in range(len(places))]
        try:
            async with asyncio.timeout_at(self._job.deadline):
                await asyncio.gather(*tasks)
        except TimeoutError:
            raise RequestTimeoutError(
                "the request took longer than it may and was ended; send it again later, with fewer inputs, or allow "
                "more time (`timeout`, x-request-timeout, --request-timeout)"
            ) from None
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _take_turns(self, place: int, waiting: Iterator[tuple[int, EngineRequest]]) -> None:
        for number, request in waiting:
            self._vectors[number] = await self._one(request)
            self._ticket.begun(place)
            if len(request.prompt_ids) > LONG_PROMPT:
                await asyncio.sleep(0)

    async def _one(self, request: EngineRequest) -> bytes:
        context, cold = self._context, self._context.residency.cold_start(self._lease)
        clock, reason = context.metrics.clock(self._job.adapter, self._job.started, cold), "abort"
        self.cold = cold or self.cold
        if len(self.clocks) < MAX_SEQUENCES:
            self.clocks.append(clock)
        parts: list[bytes] = []

        def restart() -> bool:
            parts.clear()
            clock.restart()
            return True

        try:
            stream = context.engine.submit(request, restart=restart)
            async with aclosing(cast(AsyncGenerator[RequestOutput, None], stream)) as outputs:
                async for output in outputs:
                    parts.append(output.pooled)
                    if output.finish_reason is FinishReason.ERROR:
                        reason = "error"
                        raise GenerationError(output.error or "no reason given")
                    if output.finish_reason is FinishReason.ABORT:  # not by us: we leave without waiting for it
                        raise UnknownModelError(f"{self._job.adapter} was removed while this request ran")
                    if output.finish_reason is not None:
                        reason = "stop"
                        clock.computed(output.queued_seconds)
                        self.cached += output.cached_tokens
        finally:
            clock.finish(reason, len(request.prompt_ids))
        return b"".join(parts)
