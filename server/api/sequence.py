"""One sequence of a job: engine outputs in, deltas of text out."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import cast

from server.api.errors import GenerationError
from server.api.job import Job, Prompt
from server.api.parts import Parts
from server.detokenize import IncrementalDecoder, OutputText, StopFinder
from server.engine.messages import EngineRequest, FinishReason, RequestOutput, TokenLogprobs
from server.errors import UnknownModelError
from server.metrics import RequestClock


@dataclass(frozen=True)
class TokenEntry:
    """A shown token, where its text begins in the output, and its log-probabilities."""

    offset: int
    logprobs: TokenLogprobs


@dataclass(frozen=True)
class Delta:
    """What is new of one sequence. ``completion_tokens`` counts from its beginning; ``first`` marks the first delta.

    ``prompt_logprobs`` comes with the first delta, when asked for.
    """

    index: int
    text: str = ""
    tokens: list[TokenEntry] = field(default_factory=list)
    finish_reason: str | None = None
    first: bool = False
    completion_tokens: int = 0
    cached_tokens: int = 0
    prompt_logprobs: list[TokenLogprobs | None] | None = None


class Sequence:
    """Submits one engine request when made; iterate ``deltas`` to its end, or close it to abort."""

    def __init__(self, parts: Parts, job: Job, index: int, request: EngineRequest, clock: RequestClock) -> None:
        self.index = index
        self._job = job
        self._prompt: Prompt = job.prompts[index // job.n]
        self._clock = clock
        self._text = _output_text(job, self._prompt)
        self._waiting: list[TokenEntry] = []
        self._first = True
        self._completion_tokens = 0
        self._ended = False
        self._outputs = cast(AsyncGenerator[RequestOutput, None], parts.engine.submit(request))

    async def deltas(self) -> AsyncGenerator[Delta, None]:
        """Deltas up to the one with a finish reason. Raises GenerationError, EngineUnavailableError."""
        try:
            async with aclosing(self._outputs):
                async for output in self._outputs:
                    delta = self._consume(output)
                    if delta.finish_reason is not None:
                        self._end(delta.finish_reason)
                    if delta.text or delta.tokens or delta.first or delta.finish_reason is not None:
                        yield delta
                    if delta.finish_reason is not None:
                        return
        finally:
            await self.close()

    async def close(self) -> None:
        """Abort if still running; harmless after the end."""
        self._end("abort")
        await self._outputs.aclose()

    def _end(self, reason: str) -> None:
        if not self._ended:
            self._ended = True
            self._clock.finish(reason, len(self._prompt.ids))

    def _consume(self, output: RequestOutput) -> Delta:
        self._clock.tokens(len(output.token_ids), queued_seconds=output.queued_seconds)
        self._check(output)
        shown = output.token_ids[:-1] if output.stop_token_id is not None else output.token_ids
        piece, offsets = self._text.push(shown)
        reason = self._finish_reason(output)
        if reason is not None:
            piece += self._text.finish()
            reason = "stop" if self._text.stopped else reason
        self._completion_tokens += len(offsets) if self._text.stopped else len(output.token_ids)
        self._waiting += [TokenEntry(o, lp) for o, lp in zip(offsets, output.logprobs or [], strict=False)]
        delta = Delta(
            index=self.index,
            text=piece,
            tokens=self._released(ended=reason is not None),
            finish_reason=reason,
            first=self._first,
            completion_tokens=self._completion_tokens,
            cached_tokens=output.cached_tokens if self._first else 0,
            prompt_logprobs=output.prompt_logprobs,
        )
        self._first = False
        return delta

    def _check(self, output: RequestOutput) -> None:
        if output.finish_reason is FinishReason.ERROR:
            self._end("error")
            raise GenerationError(output.error or "no reason given")
        if output.finish_reason is FinishReason.ABORT:  # not by us: we leave without waiting for the answer
            self._end("abort")
            raise UnknownModelError(f"{self._job.adapter} was removed while this request ran")

    def _finish_reason(self, output: RequestOutput) -> str | None:
        if self._text.stopped:
            return "stop"
        return output.finish_reason.value if output.finish_reason is not None else None

    def _released(self, *, ended: bool) -> list[TokenEntry]:
        """Tokens whose text is out. Those of a stop string never are."""
        if ended and not self._text.stopped:
            released, self._waiting = self._waiting, []
            return released
        released = [entry for entry in self._waiting if entry.offset < self._text.length]
        self._waiting = self._waiting[len(released) :]
        return released


def _output_text(job: Job, prompt: Prompt) -> OutputText:
    context = prompt.ids if job.continues else ()
    return OutputText(
        IncrementalDecoder(job.tokenizer, context, skip_special_tokens=job.text.skip_special_tokens),
        StopFinder(job.text.stops, include=job.text.include_stop),
        min_tokens=job.sampling.min_tokens,
    )
