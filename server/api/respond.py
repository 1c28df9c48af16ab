"""From a checked body to an answer: resolves the model, makes the job, runs it, streams or collects.

Answers are whole, or server-sent events; work for a client that leaves ends at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import Any, Protocol, TypeVar

import msgspec
from fastapi import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server.adapter_key import AdapterKey
from server.api.auth import caller_of
from server.api.body_limits import forget_body
from server.api.context import ServerContext
from server.api.copies import answer_copy
from server.api.error_responses import retry_later, to_api_error
from server.api.generation import Generation, running
from server.api.large_answer import LargeAnswer, counted, json_parts
from server.api.outputs import Completion, TextDelta, Usage
from server.api.prepare import Job, asked_model
from server.api.shadow import Answered
from server.api.sharing import deadline_of, settled, share_of
from server.api.wire import SamplingBody
from server.catalog.registry import Lease
from server.errors import AdapterFailedError, BudgetError, EngineUnavailableError, StoreError, UnknownModelError

T = TypeVar("T")
Body = TypeVar("Body", bound=SamplingBody)
Prepare = Callable[[ServerContext, Body, AdapterKey | None, float], Awaitable[Job]]
SESSION_HEADER = "x-session-id"  # what a request sticks to whose body says nothing
GONE_STATUS = 499  # nginx's number; nobody is there to read it
DONE = b"data: [DONE]\n\n"
EVENT_END = b"\n\n"
COMMENT = b": still working\n\n"
_encode = msgspec.json.Encoder().encode


async def answer(
    request: Request, context: ServerContext, body: Body, form: ChoiceFormat, prepare: Prepare[Body]
) -> Response:
    """The whole life of one generation request."""
    forget_body(request)
    work = _Work(request, context, body, form, prepare)
    try:
        return await (work.stream() if body.stream else work.complete())
    except ClientGone:
        return Response(status_code=GONE_STATUS)
    except Exception as error:
        work.count_error(error)
        raise


class _Work:
    """One request and what is known of it so far."""

    def __init__(
        self, request: Request, context: ServerContext, body: Body, form: ChoiceFormat, prepare: Prepare[Body]
    ) -> None:
        self._request = request
        self._context = context
        self._caller = caller_of(request)
        self._body = body
        self._form = form
        self._prepare = prepare
        self._started = time.perf_counter()
        self._deadline = deadline_of(request, context.config, body)
        self._headers: dict[str, str] = {}
        self._adapter: AdapterKey | None = None
        self._drawn: AdapterKey | None = None  # that it holds, or held
        self._shadow: AdapterKey | None = None  # that gets a copy
        self._cut = asyncio.Event()  # what this request has not taken is no longer kept

    async def complete(self) -> Response:
        """Run to the end, then answer."""
        return await until_gone(self._request, self._complete())

    async def _complete(self) -> Response:
        async with self._generation() as generation:
            completions = await generation.collect()
            self._answered(generation)
            job, make = generation.job, partial(self._whole, generation, completions)
            return await job.tokenizer.off_loop(entries(job, completions), make)

    def _whole(self, generation: Generation, completions: list[Completion]) -> Response:
        body = completion_body(self._form, generation.job, completions, generation.usage)
        return LargeAnswer(json_parts(body), self._headers)

    async def stream(self) -> Response:
        """Answer as soon as the request is admitted, then go on."""
        headers: dict[str, str] = {}
        source = with_errors(self._events(headers), self.count_error)
        comments = self._context.config.stream_comment_seconds
        return await EventStream.begin(self._request, source, headers, comment_seconds=comments, cut=self._cut)

    async def _events(self, headers: dict[str, str]) -> AsyncGenerator[bytes, None]:
        """The events, after an empty one that says that the request is admitted and its headers are known."""
        async with self._generation() as generation:
            headers.update(self._headers)
            yield b""
            chunks = Chunks(self._form, generation.job, self._body)
            async with aclosing(generation.deltas()) as deltas:
                async for delta in deltas:
                    if delta.prompt_logprobs:
                        make = partial(chunks.parts_of, delta, generation.usage)
                        for part in counted(await asyncio.to_thread(make), self._request.scope["state"]):
                            yield part
                        continue
                    for chunk in chunks.of(delta, generation.usage):
                        yield event(chunk)
            for chunk in chunks.last(generation.usage):
                yield event(chunk)
            self._answered(generation)

    @asynccontextmanager
    async def _generation(self) -> AsyncIterator[Generation]:
        """The running request: lease, admission and sequences end with the block."""
        context = self._context
        if context.admission.closed_because:
            raise EngineUnavailableError(context.admission.closed_because)
        self._caller.check_asked(context.registry, self._body)
        with await self._leased() as lease:
            self._adapter = self._drawn = lease.key
            self._shadow = context.shadows.chosen(lease)
            share = share_of(self._caller, context, lease.key)
            with context.limiter.request(share.subjects) as ticket:
                context.residency.want(lease)  # it is loaded while the prompt is prepared
                job = share.job(await self._prepare(context, self._body, lease.key, self._started), self._deadline)
                ticket.admit(len(job.prompts) * job.n, job.prompt_tokens, share.most_tokens(job, self._body))
                settings = {"whole": not self._body.stream, "keep_ids": self._shadow is not None}
                async with running(context, job, lease, self._cut.set, **settings) as generation:
                    self._headers = {**job.headers, **ticket.headers()}
                    with settled(ticket, generation):
                        yield generation

    async def _leased(self) -> Lease:
        """A hold on the version that answers: the live one where a canary that was drawn cannot be loaded."""
        context, sticky = self._context, self._body.sticky or self._request.headers.get(SESSION_HEADER) or None
        lease = context.registry.lease(asked_model(context.registry, self._body), sticky)
        key = lease.key
        if key is None or not lease.by_name or (live := context.registry.live(key.name).key) == key:
            return lease
        try:
            await context.residency.ensure(lease)
        except BaseException as error:
            lease.release()
            if not isinstance(error, (AdapterFailedError, BudgetError, StoreError, UnknownModelError)):
                raise
            context.registry.on_fallback(key)
            return context.registry.lease(str(live))
        return lease

    def _answered(self, generation: Generation) -> None:
        """The request has been answered to its end."""
        self._note(generation)
        context = self._context
        ttft = [clock.ttft for clock in generation.clocks if clock.ttft is not None]
        itl = [clock.itl for clock in generation.clocks if clock.itl is not None]
        context.traffic.figures.served(self._drawn, min(ttft, default=None), sum(itl) / len(itl) if itl else None)
        if self._shadow is not None:
            job, original = generation.job, [Answered(one.ids, one.seconds) for one in generation.sequences]
            again = partial(self._prepare, context, self._body)
            context.shadows.begin(
                self._shadow,
                original,
                partial(answer_copy, context, job, original, again),
                comparable=job.sampling.temperature == 0 or self._body.seed is not None,
                active=context.admission.active,
            )

    def _note(self, generation: Generation) -> None:
        """What the log line of this request says."""
        facts = self._request.scope["state"]["record"].facts
        usage = generation.usage
        facts.update(
            model=generation.job.model,
            adapter=str(self._adapter) if self._adapter else None,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=sum(usage.completion.values()),
            cached_tokens=usage.cached_tokens,
        )

    def count_error(self, error: Exception) -> None:
        """Count an error that is answered, under the adapter that was asked for if there is one."""
        self._request.scope["state"]["record"].note_error(error)
        with contextlib.suppress(UnknownModelError):
            self._caller.check_asked(self._context.registry, self._body)
            self._adapter = self._adapter or self._context.registry.find(self._body.named(self._context.base_name))
        answer = to_api_error(error)
        self._context.metrics.error(self._adapter, answer.code or "invalid_request")
        if answer.status >= 500:
            self._context.traffic.figures.failed(self._drawn)


# ---- the forms of answers ----


class ChoiceFormat(Protocol):
    """The form of one kind's choices."""

    object: str
    chunk_object: str

    def choice(self, job: Job, completion: Completion) -> dict[str, Any]:
        """One entry of ``choices`` of a whole answer."""

    def chunk_choices(self, job: Job, delta: TextDelta) -> list[dict[str, Any]]:
        """The entries of ``choices`` that a delta makes, each a chunk of its own."""

    def fields(self, job: Job, completions: list[Completion]) -> dict[str, Any]:
        """What a whole answer has beside ``choices`` and ``usage``."""
        return {}


def head(job: Job, kind: str) -> dict[str, Any]:
    """The fields that every answer and every chunk of a job begins with."""
    return {
        "id": job.id,
        "object": kind,
        "created": job.created,
        "model": job.model,
        "system_fingerprint": job.fingerprint,
    }


def completion_body(form: ChoiceFormat, job: Job, completions: list[Completion], usage: Usage) -> dict[str, Any]:
    """The body of an answer that is not streamed. Its choices are made while it is written, and take ``completions``.

    What they hold is let go on the way: all at once, on the event loop, that would take a while.
    """
    fields = form.fields(job, completions)
    completions.reverse()
    choices = (form.choice(job, completions.pop()) for _ in range(len(completions)))
    return {**head(job, form.object), "choices": choices, "usage": usage.body(), **fields}


def entries(job: Job, completions: list[Completion]) -> int:
    """How many tokens and alternatives to them an answer tells of, which is the work of writing it."""
    told = sum(len(completion.tokens) for completion in completions)
    of_prompts = sum(len(completion.prompt_logprobs or ()) for completion in completions)
    echoed = job.prompt_tokens * job.n if job.echo else 0
    alternatives = 1 + (job.sampling.logprobs or 0)
    return told * alternatives + of_prompts * (alternatives + (job.prompt_logprobs or 0)) + echoed


class Chunks:
    """Makes the chunks of one stream, with usage where the client asked for it."""

    def __init__(self, form: ChoiceFormat, job: Job, body: SamplingBody) -> None:
        options = body.stream_options
        self._form = form
        self._job = job
        self._head = head(job, form.chunk_object)
        self._final_usage = bool(options and options.include_usage)
        self._running_usage = bool(self._final_usage and options and options.continuous_usage_stats)

    def of(self, delta: TextDelta, usage: Usage) -> list[dict[str, Any]]:
        """The chunks of one delta."""
        choices = self._form.chunk_choices(self._job, delta)
        return [{**self._head, **self._usage(choice, usage), "choices": [choice]} for choice in choices]

    def parts_of(self, delta: TextDelta, usage: Usage) -> list[bytes]:
        """The events of a delta that tells of a whole prompt."""
        return [part for chunk in self.of(delta, usage) for part in event_parts(chunk)]

    def _usage(self, choice: dict[str, Any], usage: Usage) -> dict[str, Any]:
        """What a chunk says of usage. One that tells the role comes before all tokens, and counts none."""
        if self._running_usage:
            return {"usage": usage.body(choice["index"], begun="role" not in choice.get("delta", ()))}
        return {"usage": None} if self._final_usage else {}

    def last(self, usage: Usage) -> list[dict[str, Any]]:
        """The chunk with the usage of all choices, if asked for."""
        return [{**self._head, "choices": [], "usage": usage.body()}] if self._final_usage else []


# ---- server-sent events ----


class ClientGone(Exception):  # noqa: N818 - an event, not a fault
    """The client closed its connection before the answer was ready."""


def event(data: Any) -> bytes:
    """One event."""
    return b"data: " + _encode(data) + EVENT_END


def event_parts(data: Any) -> list[bytes]:
    """A large event."""
    return [b"data: ", *json_parts(data), EVENT_END]


_WHY_CUT = "the rest of this answer was given up: it was not read while many others waited; send the request again"
NOT_TAKEN = event(retry_later(503, _WHY_CUT, type="server_error", code="answer_not_taken").body()) + DONE


async def gone(receive: Receive) -> None:
    """Return when the client has closed the connection (the body must have been read)."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def until_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``; cancels it and raises ClientGone when the client leaves first."""
    task = asyncio.create_task(work)
    watch = asyncio.create_task(gone(request.receive))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        await _stop(task, watch)


class EventStream(Response):
    """Streams events and stops the source the moment the client leaves, also while nothing is being sent.

    The source's first event is empty and awaited by ``begin``, before anything is sent: what is refused until then gets
    an HTTP status of its own. A later failure becomes an error event. A stream that is silent for ``comment_seconds``
    (unless 0) says so in a comment, because proxies cut idle connections. With ``cut`` the source is left as if the
    client had gone; should it read on, the last thing it finds is an error event.
    """

    media_type = "text/event-stream"

    def __init__(
        self, source: AsyncGenerator[bytes, None], headers: dict[str, str], comment_seconds: float, cut: asyncio.Event
    ) -> None:
        self._source = source
        self._comment_seconds = comment_seconds
        self._cut = cut
        self._sent = 0.0  # when something was last sent, by the loop's clock
        self._begun = False
        self._last = NOT_TAKEN
        self._whole = True  # whether what was sent ends with an event
        self.status_code = 200
        self.background = None
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no", **headers})

    @classmethod
    async def begin(
        cls,
        request: Request,
        source: AsyncGenerator[bytes, None],
        headers: dict[str, str],
        *,
        comment_seconds: float,
        cut: asyncio.Event,
    ) -> EventStream:
        """Wait for the first event. Raises what the source raises, or ClientGone."""
        try:
            await until_gone(request, _first(source))
        except BaseException:
            await source.aclose()
            raise
        return cls(source, headers, comment_seconds, cut)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all events, or as many as the client waits for."""
        sending = asyncio.create_task(self._send_all(send))
        ends = {sending, asyncio.create_task(gone(receive)), asyncio.create_task(self._cut.wait())}
        commenting = asyncio.create_task(self._comment(send))
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:
            await _stop(*ends, commenting)
            await self._source.aclose()
        if self._cut.is_set() and self._begun and sending.cancelled():
            await self._end(send)  # waits until there is room, or the connection is cut for taking nothing

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        self._begun = True
        async with aclosing(self._source):
            async for data in self._source:
                await self._send(send, data)
        self._last = b""
        await self._end(send)

    async def _end(self, send: Send) -> None:
        between = (
            b"" if self._whole else EVENT_END
        )  # a large event was cut off: what follows must not be read as its rest
        await send({"type": "http.response.body", "body": between + self._last, "more_body": False})

    async def _send(self, send: Send, data: bytes) -> None:
        self._whole = self._whole and data.endswith(EVENT_END)
        await send({"type": "http.response.body", "body": data, "more_body": True})
        self._sent = asyncio.get_running_loop().time()
        self._whole = data.endswith(EVENT_END)

    async def _comment(self, send: Send) -> None:
        """Beside ``_send_all``, between two events; the server writes each body it is given whole."""
        if not self._comment_seconds:
            return
        loop = asyncio.get_running_loop()
        self._sent = loop.time()
        while True:
            await asyncio.sleep(self._sent + self._comment_seconds - loop.time())
            if loop.time() - self._sent < self._comment_seconds:
                continue
            if self._whole:
                await self._send(send, COMMENT)
            else:  # the client takes a large event slowly
                self._sent = loop.time()


async def with_errors(
    source: AsyncGenerator[bytes, None], on_error: Callable[[Exception], None]
) -> AsyncGenerator[bytes, None]:
    """``source``, ended by DONE; a failure after its first event is told ``on_error`` and becomes an error event.

    What is raised before that is raised here too.
    """
    begun = False
    try:
        async with aclosing(source):
            async for data in source:
                begun = True
                yield data
    except Exception as error:
        if not begun:
            raise
        on_error(error)
        yield event(to_api_error(error).body())
    yield DONE


async def _first(source: AsyncGenerator[bytes, None]) -> None:
    await anext(source)


async def _stop(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
