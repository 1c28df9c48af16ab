"""The outputs of one request on their way to whoever iterates them. Asyncio-confined."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable

from server.engine.coalesce import join_outputs
from server.engine.messages import RequestOutput

MAX_PENDING = 256  # outputs kept apart for a reader that stalls; beyond it they are joined


class OutputBuffer:
    """Outputs not yet taken, then perhaps an error. Bounded by the tokens in it: stalled outputs are joined."""

    def __init__(self, max_pending: int = MAX_PENDING) -> None:
        self._max_pending = max_pending
        self._pending: deque[RequestOutput] = deque()
        self._error: Exception | None = None
        self._changed = asyncio.Event()

    def put(self, output: RequestOutput) -> None:
        """Append an output."""
        self._pending.append(output)
        if len(self._pending) > self._max_pending:
            self._pending = deque([join_outputs(self._pending)])
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
        return self._pending.popleft()

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
