"""Server-sent events, and work that ends when its client leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server.api.error_responses import to_api_error

DONE = b"data: [DONE]\n\n"
T = TypeVar("T")
_encode = msgspec.json.Encoder().encode


class ClientGone(Exception):  # noqa: N818 - an event, not a fault
    """The client closed its connection before the answer was ready."""


def event(data: Any) -> bytes:
    """One event."""
    return b"data: " + _encode(data) + b"\n\n"


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

    The source's first event is awaited by ``begin``, before anything is sent: what fails until then gets an HTTP
    status of its own. A later failure becomes an error event.
    """

    media_type = "text/event-stream"

    def __init__(self, source: AsyncGenerator[bytes, None], first: bytes, headers: dict[str, str]) -> None:
        self._source = source
        self._first = first
        self.status_code = 200
        self.background = None
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no", **headers})

    @classmethod
    async def begin(cls, request: Request, source: AsyncGenerator[bytes, None], headers: dict[str, str]) -> EventStream:
        """Wait for the first event. Raises what the source raises, or ClientGone."""
        try:
            first = await until_gone(request, _first(source))
        except BaseException:
            await source.aclose()
            raise
        return cls(source, first, headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all events, or as many as the client waits for."""
        sending = asyncio.create_task(self._send_all(send))
        watch = asyncio.create_task(gone(receive))
        try:
            await asyncio.wait({sending, watch}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:
            await _stop(sending, watch)
            await self._source.aclose()

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self._first, "more_body": True})
        async with aclosing(self._source):
            async for data in self._source:
                await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def with_errors(
    source: AsyncGenerator[bytes, None], on_error: Callable[[Exception], None]
) -> AsyncGenerator[bytes, None]:
    """``source``, ended by DONE; a failure after its first event is told ``on_error`` and becomes an error event."""
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


async def _first(source: AsyncGenerator[bytes, None]) -> bytes:
    return await anext(source)


async def _stop(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
