"""From a checked body to an answer: resolves the model, makes the job, runs it, streams or collects.

Answers are whole, or server-sent events; work for a client that leaves ends at once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, aclosing, asynccontextmanager, nullcontext
from functools import partial
from typing import TypeVar

from fastapi import Request
from starlette.responses import Response

from server.adapter_key import AdapterKey
from server.api.answer_form import AnswerForm, EventWriter
from server.api.auth import caller_of
from server.api.beam_sequences import best_told
from server.api.body_limits import forget_body
from server.api.context import ServerContext
from server.api.copies import answer_copy
from server.api.error_responses import ApiError
from server.api.event_stream import NOT_TAKEN, ClientGone, EventStream, until_gone, with_errors
from server.api.generation import Generation, running
from server.api.job import Job
from server.api.large_answer import LargeAnswer, counted
from server.api.leasing import count_error, leased
from server.api.load_report import load_report
from server.api.output_grammar import held_to_form
from server.api.request_record import RequestRecord
from server.api.shadow import Answered
from server.api.sharing import deadline_of, settled, share_of
from server.api.wire import SamplingBody
from server.errors import EngineUnavailableError

Body = TypeVar("Body", bound=SamplingBody)
Prepare = Callable[[ServerContext, Body, AdapterKey | None, float], Awaitable[Job]]
GONE_STATUS = 499  # nginx's number; nobody is there to read it


async def answer(
    request: Request,
    context: ServerContext,
    body: Body,
    form: AnswerForm,
    prepare: Prepare[Body],
    *,
    held: AbstractContextManager[object] | None = None,
) -> Response:
    """The whole life of one generation request; ``held`` is left when it ends, also that of a stream."""
    forget_body(request)
    work = _Work(request, context, body, form, prepare, held=held)
    try:
        return await (work.stream() if body.stream else work.complete())
    except ClientGone:
        return Response(status_code=GONE_STATUS)
    except Exception as error:
        work.count_error(error)
        raise


def events_of(
    request: Request, context: ServerContext, body: Body, form: AnswerForm, prepare: Prepare[Body]
) -> AsyncGenerator[bytes, None]:
    """The events of an answer for which no connection waits; the first, an empty one, says that it is admitted."""
    forget_body(request)
    return _Work(request, context, body, form, prepare).unattended()


class _Work:
    """One request and what is known of it so far."""

    def __init__(
        self,
        request: Request,
        context: ServerContext,
        body: Body,
        form: AnswerForm,
        prepare: Prepare[Body],
        *,
        held: AbstractContextManager[object] | None = None,
    ) -> None:
        self._request = request
        self._context = context
        self._caller = caller_of(request)
        self._body = body
        self._form = form
        self._prepare = prepare
        self._held = held or nullcontext()
        self._started = time.perf_counter()
        self._deadline = deadline_of(request, context.config, body)
        self._headers: dict[str, str] = {}
        self._drawn: AdapterKey | None = None  # that it holds, or held
        self._shadow: AdapterKey | None = None  # that gets a copy
        self._writer: EventWriter | None = None  # of its stream
        self._cut = asyncio.Event()  # what this request has not taken is no longer kept

    async def complete(self) -> Response:
        """Run to the end, then answer."""
        return await until_gone(self._request, self._complete())

    async def _complete(self) -> Response:
        async with self._generation() as generation:
            completions = await generation.collect()
            self._answered(generation)
            job, completions = best_told(generation.job, completions)
            parts = await self._form.whole(job, completions, generation.usage)
            return LargeAnswer(parts, self._headers)

    async def stream(self) -> Response:
        """Answer as soon as the request is admitted, then go on."""
        headers: dict[str, str] = {}
        source = with_errors(self._events(headers), self.count_error, self._failure)
        comments = self._context.config.stream_comment_seconds
        return await EventStream.begin(
            self._request,
            source,
            headers,
            comment_seconds=comments,
            cut=self._cut,
            not_taken=partial(self._failure, NOT_TAKEN),
        )

    async def unattended(self) -> AsyncGenerator[bytes, None]:
        """All events."""
        source = with_errors(self._events({}), self.count_error, self._failure)
        try:
            async with aclosing(source):
                async for data in source:
                    yield data
        except Exception as error:
            self.count_error(error)
            raise

    def _failure(self, error: ApiError) -> bytes:
        assert self._writer is not None, "a stream that has begun has a writer"
        return self._writer.failure(error)

    async def _events(self, headers: dict[str, str]) -> AsyncGenerator[bytes, None]:
        """The events, after an empty one that says that the request is admitted and its headers are known."""
        async with self._generation() as generation:
            headers.update(self._headers)
            self._writer = writer = self._form.writer(generation.job, self._body)
            yield b""
            for part in writer.first():
                yield part
            async with aclosing(generation.deltas()) as deltas:
                async for delta in deltas:
                    if delta.prompt_logprobs:
                        parts = await asyncio.to_thread(writer.of, delta, generation.usage)
                        for part in counted(parts, self._request.scope["state"]):
                            yield part
                        continue
                    for part in writer.of(delta, generation.usage):
                        yield part
            for part in await writer.last(generation.usage):
                yield part
            self._answered(generation)

    @asynccontextmanager
    async def _generation(self) -> AsyncIterator[Generation]:
        """The running request: lease, admission and sequences end with the block."""
        with self._held:
            async with self._running() as generation:
                yield generation

    @asynccontextmanager
    async def _running(self) -> AsyncIterator[Generation]:
        context = self._context
        if context.admission.closed_because:
            raise EngineUnavailableError(context.admission.closed_because)
        self._caller.check_asked(context.registry, self._body)
        with await leased(self._request, context, self._body) as lease:
            self._drawn = lease.key
            self._shadow = context.shadows.chosen(lease)
            share = share_of(self._caller, context, lease.key)
            with context.limiter.request(share.subjects) as ticket:
                context.residency.want(lease)  # it is loaded while the prompt is prepared
                job = share.job(await self._prepared(lease.key, self._started), self._deadline)
                ticket.admit(len(job.prompts) * job.n, job.prompt_tokens, share.most_tokens(job, self._body))
                settings = {"whole": not self._body.stream, "keep_ids": self._shadow is not None}
                async with running(context, job, lease, self._cut.set, **settings) as generation:
                    self._headers = {**job.headers, **ticket.headers(), **load_report(self._request, context)}
                    with settled(ticket, generation):
                        try:
                            yield generation
                        finally:
                            self._note(generation)

    def _answered(self, generation: Generation) -> None:
        """The request has been answered to its end."""
        context = self._context
        ttft = [clock.ttft for clock in generation.clocks if clock.ttft is not None]
        itl = [clock.itl for clock in generation.clocks if clock.itl is not None]
        context.traffic.figures.served(self._drawn, min(ttft, default=None), sum(itl) / len(itl) if itl else None)
        if self._shadow is not None and generation.job.beams is None:
            job, original = generation.job, [Answered(one.ids, one.seconds) for one in generation.sequences]
            context.shadows.begin(
                self._shadow,
                original,
                partial(answer_copy, context, job, original, self._prepared),
                comparable=job.sampling.temperature == 0 or self._body.seed is not None,
                active=context.admission.active,
            )

    async def _prepared(self, adapter: AdapterKey | None, started: float) -> Job:
        """The job, as ``adapter`` does it."""
        job = await self._prepare(self._context, self._body, adapter, started)
        return await held_to_form(self._context, self._body, job)

    def _note(self, generation: Generation) -> None:
        """What the log line of this request says, and its spans."""
        record: RequestRecord = self._request.scope["state"]["record"]
        usage, sampling = generation.usage, generation.job.sampling
        record.note_times([clock.times for clock in generation.clocks], generation.cold)
        record.asked = {
            "gen_ai.request.model": self._body.named(self._context.base_name),
            "gen_ai.request.max_tokens": sampling.max_tokens,
            "gen_ai.request.temperature": sampling.temperature,
            "gen_ai.request.top_p": sampling.top_p,
        }
        record.facts.update(
            model=generation.job.model,
            adapter=str(self._drawn) if self._drawn else None,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=sum(usage.completion.values()),
            cached_tokens=usage.cached_tokens,
        )

    def count_error(self, error: Exception) -> None:
        """Count an error that is answered."""
        count_error(self._request, self._context, self._body, self._drawn, error)
