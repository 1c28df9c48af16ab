"""Outputs that nobody has taken yet: joined, so that a slow reader costs memory for tokens and not for steps.

Nothing is lost but the boundaries between steps. ``OutputBuffer`` and ``OutputStream`` are asyncio-confined, in the API
process; ``Outbox`` is thread-safe, in the engine's.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from itertools import groupby
from typing import TypeVar

from server.engine.messages import FromEngine, RequestOutput, StepOutputs

T = TypeVar("T")


def join_outputs(outputs: Sequence[RequestOutput]) -> RequestOutput:
    """One output that says what several consecutive ones of one request said."""
    if len(outputs) == 1:
        return outputs[0]
    last = outputs[-1]
    return RequestOutput(
        request_id=last.request_id,
        token_ids=[token for output in outputs for token in output.token_ids],
        finish_reason=last.finish_reason,
        stop_token_id=last.stop_token_id,
        logprobs=_join([output.logprobs for output in outputs]),
        prompt_logprobs=_join([output.prompt_logprobs for output in outputs]),
        cached_tokens=max(output.cached_tokens for output in outputs),
        queued_seconds=max(output.queued_seconds for output in outputs),
        drafted_tokens=sum(output.drafted_tokens for output in outputs),
        accepted_tokens=sum(output.accepted_tokens for output in outputs),
        pooled=b"".join(output.pooled for output in outputs),
        error=last.error,
    )


def join_evenly(outputs: Iterable[RequestOutput], parts: int) -> list[RequestOutput]:
    """At most about twice as many as ``parts`` outputs that say the same, none with much more than its share."""
    outputs = list(outputs)
    share = sum(map(_weight, outputs)) / max(parts, 1)
    runs: list[list[RequestOutput]] = []
    left = 0.0
    for output in outputs:
        left -= _weight(output)
        if left < 0:
            runs.append([])
            left = share - _weight(output)
        runs[-1].append(output)
    return [join_outputs(run) for run in runs]


def _weight(output: RequestOutput) -> int:
    return max(len(output.token_ids), 1)


def join_steps(steps: Sequence[StepOutputs]) -> StepOutputs:
    """One message for several consecutive steps: outputs by request, newest statistics, total duration."""
    by_request: dict[str, list[RequestOutput]] = {}
    for step in steps:
        for output in step.outputs:
            by_request.setdefault(output.request_id, []).append(output)
    return StepOutputs(
        outputs=[join_outputs(outputs) for outputs in by_request.values()],
        stats=steps[-1].stats,
        step_seconds=sum(step.step_seconds for step in steps),
    )


def compact(messages: Sequence[FromEngine]) -> list[FromEngine]:
    """The same messages in the same order, with every run of adjacent step outputs joined."""
    out: list[FromEngine] = []
    for is_step, run in groupby(messages, key=lambda message: isinstance(message, StepOutputs)):
        if is_step:
            out.append(join_steps([message for message in run if isinstance(message, StepOutputs)]))
        else:
            out.extend(run)
    return out


def _join(parts: Sequence[list[T] | None]) -> list[T] | None:
    present = [part for part in parts if part is not None]
    return [entry for part in present for entry in part] if present else None


MAX_PENDING = 256  # outputs kept apart for a reader that stalls; beyond it they are joined


class OutputBuffer:
    """Outputs not yet taken, then perhaps an error. Bounded by the tokens in it: stalled outputs are joined.

    Evenly: who takes one does the work of as many steps at once, and holds up others meanwhile. ``was_read``: one has
    been taken.
    """

    def __init__(self, max_pending: int = MAX_PENDING) -> None:
        self.was_read = False
        self._max_pending = max_pending
        self._pending: deque[RequestOutput] = deque()
        self._error: Exception | None = None
        self._changed = asyncio.Event()

    def put(self, output: RequestOutput) -> None:
        """Append an output."""
        self._pending.append(output)
        if len(self._pending) > self._max_pending:
            self._pending = deque(join_evenly(self._pending, self._max_pending // 4))
        self._changed.set()

    def fail(self, error: Exception) -> None:
        """Raise ``error`` to the reader once it has taken what is here."""
        self._error = error
        self._changed.set()

    async def get(self) -> RequestOutput:
        """Wait for the next output. Raises the error given to ``fail``."""
        while not self._pending:
            if self._error is not None:
                raise self._error
            self._changed.clear()
            await self._changed.wait()
        self.was_read = True
        return self._pending.popleft()

    def clear(self) -> None:
        """Be as if nothing had been put, or taken."""
        self._pending.clear()
        self.was_read = False

    def __len__(self) -> int:
        return len(self._pending)


class OutputStream(AsyncIterator[RequestOutput]):
    """Iterates one request's outputs up to the terminal one.

    Leaving early (``aclose``, a cancelled wait, or dropping the last reference) calls ``abandon`` once.
    """

    def __init__(self, buffer: OutputBuffer, abandon: Callable[[], None]) -> None:
        self._buffer = buffer
        self._abandon = abandon
        self._ended = False
        self._loop = asyncio.get_running_loop()

    @property
    def buffered(self) -> int:
        """Outputs that wait to be taken."""
        return len(self._buffer)

    async def __anext__(self) -> RequestOutput:
        if self._ended:
            raise StopAsyncIteration
        try:
            output = await self._buffer.get()
        except BaseException:
            await self.aclose()
            raise
        self._ended = output.finish_reason is not None
        return output

    async def aclose(self) -> None:
        """Forget the request; harmless after its end."""
        if not self._ended:
            self._ended = True
            self._abandon()

    def __del__(self) -> None:
        if not self._ended and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._abandon)  # the collector may run in any thread


class Outbox:
    """A queue that never blocks the putter and never drops: beyond ``limit`` messages, steps are joined."""

    def __init__(self, limit: int = 64) -> None:
        self._limit = limit
        self._messages: list[FromEngine] = []
        self._closed = False
        self._changed = threading.Condition()

    def put(self, message: FromEngine) -> None:
        """Queue a message."""
        with self._changed:
            self._messages.append(message)
            if len(self._messages) > self._limit:
                self._messages = compact(self._messages)
            self._changed.notify()

    def close(self) -> None:
        """No message follows; ``take`` still hands out what is queued."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def take(self) -> list[FromEngine]:
        """Wait for messages and take all; empty means closed and nothing left."""
        with self._changed:
            while not self._messages and not self._closed:
                self._changed.wait()
            messages, self._messages = self._messages, []
            return messages

    def __len__(self) -> int:
        with self._changed:
            return len(self._messages)
