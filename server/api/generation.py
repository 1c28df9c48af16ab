"""All sequences of one job, run together: engine outputs in, deltas of text out, in the order they come."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import Protocol, cast

from server.api.beam_sequences import BeamEngine, Submits
from server.api.context import Place, ServerContext
from server.api.error_responses import GenerationError
from server.api.job import Job, Prompt
from server.api.outputs import Completion, TextDelta, TokenEntry, Usage
from server.catalog.lease import Lease
from server.catalog.places import ColdStart
from server.engine.ipc.client import LONG_PROMPT
from server.engine.messages import EngineRequest, FinishReason, RequestOutput, TokenLogprobs
from server.errors import InvalidRequestError, RequestTimeoutError, UnknownModelError
from server.metrics import RequestClock
from server.text.detokenize import IncrementalDecoder, OutputText, PlacedToken, StopFinder
from server.text.output.parts import Part, ToolCallBegin


class Clock(Protocol):
    """Is told of a sequence's tokens; ``RequestClock`` is one."""

    def tokens(self, count: int, *, queued_seconds: float = 0.0) -> None:
        """``count`` new tokens arrived."""

    def drafts(self, drafted: int, accepted: int) -> None:
        """Of ``drafted`` tokens that were computed in addition, ``accepted`` were right."""

    def preempted(self, times: int) -> None:
        """It was put back so many times."""

    def restart(self) -> None:
        """What came so far is lost, and is computed again."""

    def finish(self, reason: str, prompt_tokens: int) -> None:
        """The sequence ended."""


class Holder(Protocol):
    """What a sequence takes up while it is read; a ``Place`` is one."""

    def left(self) -> None:
        """It is no longer read."""


class Sequence:
    """Submits one engine request when made; iterate ``deltas`` to its end, or close it to abort.

    When the engine is lost it may be computed anew, from its beginning: another delta is the first then, and voids
    those before. That is done while there is none, and with ``whole``, where nobody sees them before the end.
    """

    def __init__(
        self,
        engine: Submits,
        job: Job,
        index: int,
        request: EngineRequest,
        *,
        clock: Clock,
        place: Holder,
        on_end: Callable[[], None],
        whole: bool = False,
        keep_ids: bool = False,
    ) -> None:
        self.index = index
        self._clock = clock
        self._keep_ids = keep_ids
        self._begun = time.perf_counter()
        self._seconds = 0.0
        self._job = job
        self._prompt: Prompt = job.prompts[index // job.n]
        self._place = place
        self._whole = whole
        self._ended = False
        self._on_end = on_end
        self._begin()
        outputs = engine.submit(request, self._engine_ended, self._restart)
        self._outputs = cast(AsyncGenerator[RequestOutput, None], outputs)
        self._closing: asyncio.Task[None] | None = None
        self._timer = _at(job.deadline, self._expire)

    def _begin(self) -> None:
        self.ids: list[int] = []  # of the output, one that ends it included; with ``keep_ids``
        self._text = _output_text(self._job, self._prompt)
        self._parser = self._job.make_parser() if self._job.make_parser is not None else None
        self._unsettled: deque[int] = deque()  # where tokens begin that may turn out to be thoughts
        self._thought_tokens, self._called = 0, False
        self._waiting: deque[tuple[PlacedToken, TokenLogprobs]] = deque()
        self._first = True
        self._prompt_logprobs: list[TokenLogprobs | None] = []
        self._completion_tokens = 0

    @property
    def seconds(self) -> float:
        """How long the engine took, however slowly its outputs were read."""
        return self._seconds or time.perf_counter() - self._begun

    def _restart(self) -> bool:
        """Forget what has come so far, if that may be."""
        if self._ended or not (self._whole or self._first):
            return False
        self._clock.restart()
        self._begin()
        return True

    async def deltas(self) -> AsyncGenerator[TextDelta, None]:
        """Deltas up to the one with a finish reason. Raises GenerationError, EngineUnavailableError."""
        try:
            async with aclosing(self._outputs):
                while (output := await self._next()) is not None:
                    self._prompt_logprobs += output.prompt_logprobs or ()
                    if not output.token_ids and output.finish_reason is None:
                        continue
                    delta = self._consume(output)
                    if delta.finish_reason is not None:
                        self._end(delta.finish_reason)
                    if delta.text or delta.tokens or delta.token_ids or delta.first or delta.finish_reason is not None:
                        yield delta
                    if delta.finish_reason is not None:
                        return
        finally:
            await self.close()

    async def _next(self) -> RequestOutput | None:
        """The next output. Raises RequestTimeoutError."""
        try:
            async with asyncio.timeout_at(self._job.deadline):
                output = await anext(self._outputs, None)
        except TimeoutError:
            raise self._too_late() from None
        if output is None and self._closing is not None:
            raise self._too_late()
        return output

    def _too_late(self) -> RequestTimeoutError:
        self._end("timeout")
        began = "before its first token" if self._first else f"after {self._completion_tokens} tokens of output"
        return RequestTimeoutError(
            f"the request took longer than it may and was ended {began}; send it again later, or allow more time "
            "(`timeout`, x-request-timeout, --request-timeout)"
        )

    def _expire(self) -> None:
        """The engine gives it up now, however slowly it is read."""
        if not self._ended:
            self._closing = asyncio.create_task(self._outputs.aclose())

    async def close(self) -> None:
        """Abort if still running; harmless after the end."""
        self._end("abort")
        self._timer.cancel()
        await self._outputs.aclose()

    def _engine_ended(self) -> None:
        self._seconds = time.perf_counter() - self._begun
        self._on_end()

    def _end(self, reason: str) -> None:
        if not self._ended:
            self._ended = True
            self._clock.finish(reason, len(self._prompt.ids))
            self._place.left()

    def _consume(self, output: RequestOutput) -> TextDelta:
        self._clock.tokens(len(output.token_ids), queued_seconds=output.queued_seconds)
        self._clock.drafts(output.drafted_tokens, output.accepted_tokens)
        self._clock.preempted(output.preemptions)
        self._check(output)
        shown = output.token_ids[:-1] if output.stop_token_id is not None else output.token_ids
        piece, places = self._text.push(shown)
        reason = self._finish_reason(output)
        if reason is not None:
            piece += self._text.finish()
            reason = "stop" if self._text.stopped else reason
        self._completion_tokens += len(places) if self._text.stopped else len(output.token_ids)
        ids = output.token_ids[: len(places)] if self._text.stopped else output.token_ids
        if self._keep_ids:
            self.ids += ids
        if output.stop_token_id is not None and self._job.lists_end:
            places.append(self._text.end())
        self._waiting += zip(places, output.logprobs or [], strict=False)
        parts = self._parts(piece, places, ended=reason is not None)
        delta = TextDelta(
            index=self.index,
            text=piece,
            tokens=self._released(ended=reason is not None),
            finish_reason=reason,
            first=self._first,
            completion_tokens=self._completion_tokens,
            cached_tokens=output.cached_tokens if self._first else 0,
            prompt_logprobs=self._prompt_logprobs if self._first and self._prompt_logprobs else None,
            parts=parts,
            thought_tokens=self._thought_tokens,
            called=self._called,
            token_ids=list(ids) if self._job.tells.token_ids else [],
            stop_reason=self._stop_reason(output),
        )
        self._first, self._prompt_logprobs = False, []
        return delta

    def _parts(self, piece: str, places: list[PlacedToken], *, ended: bool) -> list[Part]:
        """What ``piece`` of the text, written by tokens at ``places``, is of a message."""
        if self._parser is None:
            return []
        if self._parser.thinking:
            self._unsettled += (place.offset for place in places)
        parts = self._parser.feed(piece)
        if ended:
            parts += self._parser.finish()
        self._called = self._called or any(isinstance(part, ToolCallBegin) for part in parts)
        while self._unsettled and self._unsettled[0] < self._parser.thought_chars:
            self._unsettled.popleft()
            self._thought_tokens += 1
        return parts

    def _check(self, output: RequestOutput) -> None:
        if output.finish_reason is FinishReason.ERROR:
            self._end("error")
            if output.is_refusal:
                raise InvalidRequestError(output.error or "no reason given")
            raise GenerationError(output.error or "no reason given")
        if output.finish_reason is FinishReason.ABORT:  # not by us: we leave without waiting for the answer
            self._end("abort")
            raise UnknownModelError(f"{self._job.adapter} was removed while this request ran")

    def _finish_reason(self, output: RequestOutput) -> str | None:
        if self._text.stopped:
            return "stop"
        return output.finish_reason.value if output.finish_reason is not None else None

    def _stop_reason(self, output: RequestOutput) -> str | int | None:
        if self._text.stopped or output.stop_token_id is None:
            return self._text.stop
        return self._job.text.stop_reasons.get(output.stop_token_id)

    def _released(self, *, ended: bool) -> list[TokenEntry]:
        """Tokens whose text is out, whole. Those of a stop string never are; one that it begins in, up to there."""
        released = []
        while self._waiting and (ended or self._text.shows(self._waiting[0][0])):  # in the order of their places
            place, values = self._waiting.popleft()
            kept = self._text.cut(place) if self._text.stopped else place
            if kept is not None:
                released.append((kept, values))
        return [TokenEntry(place.offset, values, place.before, place.spelt) for place, values in released]


def _at(when: float | None, call: Callable[[], None]) -> asyncio.Handle:
    """``call`` when the loop's clock says ``when``; for None a handle of what never comes."""
    loop = asyncio.get_running_loop()
    if when is not None:
        return loop.call_at(when, call)
    return asyncio.Handle(call, (), loop)


def _output_text(job: Job, prompt: Prompt) -> OutputText:
    context = prompt.ids if job.continues and not prompt.embeds else ()
    return OutputText(
        IncrementalDecoder(
            job.tokenizer, context, skip_special_tokens=job.text.skip_special_tokens, shown=job.text.shown
        ),
        StopFinder(job.text.stops, include=job.text.include_stop),
        min_tokens=job.sampling.min_tokens,
    )


class Generation:
    """The running sequences of a job, and the usage so far. ``on_first`` is called when one has its first token."""

    def __init__(
        self, job: Job, sequences: list[Sequence], clocks: list[RequestClock], cold: ColdStart | None = None
    ) -> None:
        self.job = job
        self.cold = cold
        self.usage = Usage(job.prompt_tokens)
        self.clocks = clocks
        self.sequences = sequences
        self.on_first: Callable[[int], None] = lambda index: None

    async def deltas(self) -> AsyncGenerator[TextDelta, None]:
        """The deltas of all sequences. The first error of any ends all."""
        if len(self.sequences) == 1:
            merged = self.sequences[0].deltas()
        else:
            merged = _merge([sequence.deltas() for sequence in self.sequences])
        async with aclosing(merged):
            async for delta in merged:
                if delta.first:
                    self.on_first(delta.index)
                self.usage.add(delta, self.job.n)
                yield delta

    async def collect(self) -> list[Completion]:
        """Run all sequences to their ends."""
        completions = [Completion(index) for index in range(len(self.sequences))]
        async for delta in self.deltas():
            completions[delta.index].add(delta)
        return completions


@asynccontextmanager
async def running(
    context: ServerContext,
    job: Job,
    lease: Lease,
    cut: Callable[[], None] = lambda: None,
    *,
    whole: bool = False,
    keep_ids: bool = False,
) -> AsyncIterator[Generation]:
    """Submit all sequences of ``job`` at once, counted in its ``lease``; abort those that run when the block is left.

    A sequence is counted until the engine has ended it, however slowly it is read, and with the last the lease ends.
    The version of the lease is resident first. ``cut`` is called when what nobody reads has to go. ``whole``: deltas
    are only collected; with ``keep_ids`` sequences know their output. Raises QueueFullError, EngineUnavailableError, or
    as ``Residency.ensure``, before anything runs.
    """
    requests = job.requests()
    engine = context.engine if job.beams is None else BeamEngine(context.engine, job)
    holder = job.tenant, job.adapter.name if job.adapter else ""
    with context.admission.admit(len(requests), cut, holder) as places:
        await resident(context, lease, job.deadline)
        lease.sequences = len(requests)
        context.shadows.give_way(context.admission.active)
        cold = context.residency.cold_start(lease)
        asked = {"n": job.n, "max_tokens": job.sampling.max_tokens}
        clocks = [context.metrics.clock(job.adapter, job.started, cold, **asked) for _ in requests]
        sequences: list[Sequence] = []
        try:
            for index, (request, place) in enumerate(zip(requests, places, strict=True)):
                sequences.append(
                    Sequence(
                        engine,
                        job,
                        index,
                        request,
                        clock=clocks[index],
                        place=place,
                        on_end=partial(_engine_ended, place, lease),
                        whole=whole,
                        keep_ids=keep_ids,
                    )
                )
                if len(request.prompt_ids) > LONG_PROMPT:
                    await asyncio.sleep(0)
            yield Generation(job, sequences, clocks, cold)
        finally:
            for sequence in sequences:
                await sequence.close()


async def resident(context: ServerContext, lease: Lease, deadline: float | None) -> None:
    """Wait until the adapter is in memory. Raises RequestTimeoutError as well."""
    try:
        async with asyncio.timeout_at(deadline):
            await context.residency.ensure(lease)
    except TimeoutError:
        raise RequestTimeoutError(
            "the request took longer than it may while it waited for its adapter to be loaded; send it again later"
        ) from None


def _engine_ended(place: Place, lease: Lease) -> None:
    place.ended()
    lease.sequences -= 1
    if not lease.sequences:
        lease.release()


async def _merge(streams: list[AsyncGenerator[TextDelta, None]]) -> AsyncGenerator[TextDelta, None]:
    """Deltas of all ``streams`` as they come; a bounded queue, so that a slow reader holds the pumps back."""
    queue: asyncio.Queue[TextDelta | Exception | None] = asyncio.Queue(maxsize=2 * len(streams))
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


async def _pump(stream: AsyncGenerator[TextDelta, None], queue: asyncio.Queue[TextDelta | Exception | None]) -> None:
    try:
        async with aclosing(stream):
            async for delta in stream:
                await queue.put(delta)
    except Exception as error:  # noqa: BLE001 - handed to the reader, who raises it
        await queue.put(error)
    else:
        await queue.put(None)
