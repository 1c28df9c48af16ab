"""Server-sent events: how they are written, and how a stream of them is sent, cut and ended.

Knows nothing of what they tell.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

import msgspec
from fastapi import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server.api.error_responses import ApiError, retry_later, to_api_error
from server.api.large_answer import json_parts

T = TypeVar("T")
DONE = b"data: [DONE]\n\n"
EVENT_END = b"\n\n"
COMMENT = b": still working\n\n"
OBFUSCATION_BLOCK = 64  # bytes
_encode = msgspec.json.Encoder().encode


class ClientGone(Exception):  # noqa: N818 - an event, not a fault
    """The client closed its connection before the answer was ready."""


def event(data: Any, name: str = "") -> bytes:
    """One event; of a ``name`` where its readers go by names."""
    return (b"event: " + name.encode() + b"\n" if name else b"") + b"data: " + _encode(data) + EVENT_END


def obfuscated(data: dict[str, Any]) -> dict[str, Any]:
    """``data`` with padding: those who see only how large its events are do not learn how long each piece is."""
    room = OBFUSCATION_BLOCK - len(_encode(data)) % OBFUSCATION_BLOCK
    return {**data, "obfuscation": secrets.token_urlsafe(room)[:room]}


def event_parts(data: Any) -> list[bytes]:
    """A large event."""
    return [b"data: ", *json_parts(data), EVENT_END]


NOT_TAKEN = retry_later(
    503,
    "the rest of this answer was given up: it was not read while many others waited; send the request again",
    type="server_error",
    code="answer_not_taken",
)


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
    client had gone; should it read on, the last thing it finds is ``not_taken``.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        source: AsyncGenerator[bytes, None],
        headers: dict[str, str],
        comment_seconds: float,
        cut: asyncio.Event,
        not_taken: Callable[[], bytes],
    ) -> None:
        self._source = source
        self._comment_seconds = comment_seconds
        self._cut = cut
        self._sent = 0.0  # when something was last sent, by the loop's clock
        self._begun = False
        self._not_taken = not_taken
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
        not_taken: Callable[[], bytes],
    ) -> EventStream:
        """Wait for the first event. Raises what the source raises, or ClientGone."""
        try:
            await until_gone(request, _first(source))
        except BaseException:
            await source.aclose()
            raise
        return cls(source, headers, comment_seconds, cut, not_taken)

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
            await self._end(
                send, self._not_taken()
            )  # waits until there is room, or the connection is cut for taking nothing

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        self._begun = True
        async with aclosing(self._source):
            async for data in self._source:
                await self._send(send, data)
        await self._end(send, b"")

    async def _end(self, send: Send, last: bytes) -> None:
        between = (
            b"" if self._whole else EVENT_END
        )  # a large event was cut off: what follows must not be read as its rest
        await send({"type": "http.response.body", "body": between + last, "more_body": False})

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
    source: AsyncGenerator[bytes, None], on_error: Callable[[Exception], None], failure: Callable[[ApiError], bytes]
) -> AsyncGenerator[bytes, None]:
    """``source``; of a failure after its first event ``on_error`` is told, and ``failure`` makes the end of the stream.

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
        yield failure(to_api_error(error))


async def _first(source: AsyncGenerator[bytes, None]) -> None:
    await anext(source)


async def _stop(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
