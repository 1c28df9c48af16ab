"""From a checked body to an answer: resolves the model, makes the job, runs it, streams or collects."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from fastapi import Request
from starlette.responses import Response

from server.adapter_key import AdapterKey
from server.api.auth import tenant
from server.api.context import ServerContext
from server.api.error_responses import json_response, to_api_error
from server.api.generation import Completion, Delta, Generation, Usage, running
from server.api.prepare import Job
from server.api.streaming import ClientGone, EventStream, event, until_gone, with_errors
from server.api.wire import SamplingBody
from server.errors import EngineUnavailableError


class Reply(Protocol):
    """The form of one kind's choices."""

    object: str
    chunk_object: str

    def choice(self, job: Job, whole: Completion) -> dict[str, Any]:
        """One entry of ``choices`` of a whole answer."""

    def chunk_choices(self, job: Job, delta: Delta) -> list[dict[str, Any]]:
        """The entries of ``choices`` that a delta makes, each a chunk of its own."""


def head(job: Job, kind: str) -> dict[str, Any]:
    """The fields that every answer and every chunk of a job begins with."""
    return {
        "id": job.id,
        "object": kind,
        "created": job.created,
        "model": job.model,
        "system_fingerprint": job.fingerprint,
    }


def completion_body(reply: Reply, job: Job, wholes: list[Completion], usage: Usage) -> dict[str, Any]:
    """The body of an answer that is not streamed."""
    choices = [reply.choice(job, whole) for whole in wholes]
    return {**head(job, reply.object), "choices": choices, "usage": usage.body()}


class Chunks:
    """Makes the chunks of one stream, with usage where the client asked for it."""

    def __init__(self, reply: Reply, job: Job, body: SamplingBody) -> None:
        options = body.stream_options
        self._reply = reply
        self._job = job
        self._head = head(job, reply.chunk_object)
        self._final_usage = bool(options and options.include_usage)
        self._running_usage = bool(options and options.continuous_usage_stats)

    def of(self, delta: Delta, usage: Usage) -> list[dict[str, Any]]:
        """The chunks of one delta."""
        common = dict(self._head)
        if self._running_usage:
            common["usage"] = usage.body(delta.index)
        elif self._final_usage:
            common["usage"] = None
        return [{**common, "choices": [choice]} for choice in self._reply.chunk_choices(self._job, delta)]

    def last(self, usage: Usage) -> list[dict[str, Any]]:
        """The chunk with the usage of all choices, if asked for."""
        return [{**self._head, "choices": [], "usage": usage.body()}] if self._final_usage else []


Body = TypeVar("Body", bound=SamplingBody)
Prepare = Callable[[ServerContext, Body, AdapterKey | None, float], Awaitable[Job]]
GONE_STATUS = 499  # nginx's number; nobody is there to read it


async def answer(
    request: Request, context: ServerContext, body: Body, reply: Reply, prepare: Prepare[Body]
) -> Response:
    """The whole life of one generation request."""
    work = _Work(request, context, body, reply, prepare)
    try:
        return await (work.stream() if body.stream else work.whole())
    except ClientGone:
        return Response(status_code=GONE_STATUS)
    except Exception as error:
        work.count_error(error)
        raise


class _Work:
    """One request and what is known of it so far."""

    def __init__(
        self, request: Request, context: ServerContext, body: Body, reply: Reply, prepare: Prepare[Body]
    ) -> None:
        self._request = request
        self._context = context
        self._body = body
        self._reply = reply
        self._prepare = prepare
        self._started = time.perf_counter()
        self._adapter: AdapterKey | None = None

    async def whole(self) -> Response:
        """Run to the end, then answer."""
        return await until_gone(self._request, self._whole())

    async def _whole(self) -> Response:
        async with self._generation() as generation:
            wholes = await generation.collect()
            self._note(generation)
            body = completion_body(self._reply, generation.job, wholes, generation.usage)
            return json_response(body, headers=generation.job.headers)

    async def stream(self) -> Response:
        """Answer with the first token, then go on."""
        headers: dict[str, str] = {}
        source = with_errors(self._events(headers), self.count_error)
        return await EventStream.begin(self._request, source, headers)

    async def _events(self, headers: dict[str, str]) -> AsyncGenerator[bytes, None]:
        async with self._generation() as generation:
            headers.update(generation.job.headers)
            chunks = Chunks(self._reply, generation.job, self._body)
            async with aclosing(generation.deltas()) as deltas:
                async for delta in deltas:
                    for chunk in chunks.of(delta, generation.usage):
                        yield event(chunk)
            for chunk in chunks.last(generation.usage):
                yield event(chunk)
            self._note(generation)

    @asynccontextmanager
    async def _generation(self) -> AsyncIterator[Generation]:
        """The running request: lease, admission and sequences end with the block."""
        context = self._context
        if context.admission.closed_because:
            raise EngineUnavailableError(context.admission.closed_because)
        with context.registry.lease(self._body.model) as lease:
            self._adapter = lease.key
            job = await self._prepare(context, self._body, lease.key, self._started)
            salted = replace(job, cache_salt=tenant(self._request, context.config) + job.cache_salt)
            async with running(context, salted, lease) as generation:
                yield generation

    def _note(self, generation: Generation) -> None:
        """What the log line of this request says."""
        facts = self._request.scope["state"]["facts"]
        usage = generation.usage
        facts.update(
            model=generation.job.model,
            adapter=str(self._adapter) if self._adapter else None,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=sum(usage.completion.values()),
            cached_tokens=usage.cached_tokens,
        )

    def count_error(self, error: Exception) -> None:
        """Count an error that is answered."""
        self._context.metrics.error(self._adapter, to_api_error(error).code or "invalid_request")
