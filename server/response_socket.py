"""Responses over a WebSocket: every ``response.create`` is a request of its own to the application, as over HTTP.

So keys, limits, logs and the life of a request are the same. What a connection adds is its memory: it can go on from
its last response although that is not kept.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import cast

import msgspec
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Scope
from typing_extensions import override
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, TextMessage
from wsproto.frame_protocol import CloseReason
from wsproto.utilities import generate_accept_token

from server.api.responses.socket import Recollection, error_event

LIFE_SECONDS = 3600.0
MOST_WAITING = 4  # messages; no more is read while so many wait
UPGRADE = 426  # what the application says to who may open a socket
_NOT_PASSED = ("connection", "upgrade", "content-length", "content-type", "transfer-encoding", "sec-websocket-")


class ResponseSocket(asyncio.Protocol):
    """One connection whose client asked for a WebSocket. ``scope`` is of that request."""

    def __init__(self, app: ASGIApp, scope: Scope, *, most_bytes: int, send_seconds: float) -> None:
        self._app = app
        self._scope = scope
        self._send_seconds = send_seconds
        self._frames = Connection(ConnectionType.SERVER)
        self._most_bytes = most_bytes
        self._parts: list[str] = []  # of a message that is not whole
        self._bytes = 0
        self._recollection = Recollection()
        self._waiting: deque[str] = deque()
        self._news = asyncio.Event()  # something waits, or the end has come
        self._writable = asyncio.Event()
        self._writable.set()
        self._gone = asyncio.Event()
        self._ending: CloseReason | None = None  # the code to close with, after the turn
        self._answering = False
        self.task: asyncio.Task[None] | None = None
        self.on_lost: Callable[[], None] = lambda: None

    # ---- what the transport calls ----

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.task = asyncio.create_task(self._run())

    @override
    def data_received(self, data: bytes) -> None:
        if self._transport.is_closing():
            return
        self._frames.receive_data(data)
        for event in self._frames.events():
            self._take(event)

    @override
    def pause_writing(self) -> None:
        self._writable.clear()

    @override
    def resume_writing(self) -> None:
        self._writable.set()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._gone.set()
        self._news.set()
        self._writable.set()
        self.on_lost()

    def shutdown(self) -> None:
        """The server ends: what is being answered may be, and nothing more."""
        self._ending = CloseReason.GOING_AWAY
        self._news.set()

    # ---- inside ----

    def _take(self, event: Event) -> None:
        if isinstance(event, Ping):
            self._transport.write(self._frames.send(event.response()))
        elif isinstance(event, CloseConnection):  # also what is no frame
            self._close(event.code, event.reason or "")
        elif isinstance(event, BytesMessage):
            self._close(CloseReason.UNSUPPORTED_DATA, "send text")
        elif isinstance(event, TextMessage):
            self._take_text(event)

    def _take_text(self, event: TextMessage) -> None:
        self._parts.append(event.data)
        self._bytes += len(event.data.encode())
        if self._bytes > self._most_bytes:
            self._close(CloseReason.MESSAGE_TOO_BIG, "the message is too large")
        elif event.message_finished:
            self._waiting.append("".join(self._parts))
            self._parts, self._bytes = [], 0
            self._news.set()
            if len(self._waiting) >= MOST_WAITING:
                self._transport.pause_reading()

    def _close(self, code: int, reason: str = "") -> None:
        if not self._transport.is_closing():
            self._transport.write(self._frames.send(CloseConnection(code, reason)))
            self._transport.close()

    async def _run(self) -> None:
        """The handshake, then turn after turn."""
        if not await self._opened():
            return
        ends = asyncio.get_running_loop().time() + LIFE_SECONDS
        try:
            async with asyncio.timeout_at(ends):
                while not self._gone.is_set() and (text := await self._next()) is not None:
                    await self._turn(text)
        except TimeoutError:
            self._close(CloseReason.NORMAL_CLOSURE, "an hour is over")
        self._close(self._ending or CloseReason.NORMAL_CLOSURE)

    async def _next(self) -> str | None:
        """The next message; None when there will be none."""
        while not self._waiting:
            if self._gone.is_set() or self._ending is not None:
                return None
            self._news.clear()
            await self._news.wait()
        if self._ending is not None:
            return None
        text = self._waiting.popleft()
        if len(self._waiting) < MOST_WAITING and not self._transport.is_closing():
            self._transport.resume_reading()
        return text

    async def _opened(self) -> bool:
        """Whether the client may open a socket; it is told."""
        headers = Headers(scope=self._scope)
        answer = _Whole()
        await self._ask("GET", b"", answer.take)
        key = headers.get("sec-websocket-key", "")
        if answer.status != UPGRADE or not key or headers.get("sec-websocket-version") != "13":
            self._transport.write(answer.as_http())
            self._transport.close()
            return False
        lines = ["HTTP/1.1 101 Switching Protocols", "upgrade: websocket", "connection: upgrade"]
        accepted = generate_accept_token(key.encode("latin-1")).decode()
        self._transport.write("\r\n".join([*lines, f"sec-websocket-accept: {accepted}", "", ""]).encode())
        return True

    async def _turn(self, text: str) -> None:
        """Answer one message: its events, or an error that tells why there are none."""
        body = self._recollection.begin(text)
        if isinstance(body, dict):
            await self._say(msgspec.json.encode(body))
            return
        answer = _Whole()
        pending = b""

        async def take(message: Message) -> None:
            nonlocal pending
            if not answer.streams(message):
                await answer.take(message)
                return
            *events, pending = (pending + message.get("body", b"")).split(b"\n\n")
            for event in events:
                if (data := _data_of(event)) is not None:
                    self._recollection.see(data)
                    await self._say(data)

        await self._ask("POST", body, take)
        if answer.status != 200:
            self._recollection.fail()
            await self._say(msgspec.json.encode(error_event(answer.status, answer.body)))

    async def _say(self, text: bytes) -> None:
        if self._transport.is_closing():
            return
        self._transport.write(self._frames.send(TextMessage(text.decode())))
        try:
            async with asyncio.timeout(self._send_seconds):
                await self._writable.wait()
        except TimeoutError:
            self._transport.abort()

    async def _ask(self, method: str, body: bytes, take: Callable[[Message], Awaitable[None]]) -> None:
        """Send the application a request with the headers of the handshake."""
        headers = [pair for pair in self._scope["headers"] if not pair[0].decode("latin-1").startswith(_NOT_PASSED)]
        if method == "POST":
            headers += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        state = {**self._scope.get("state", {}), "recollection": self._recollection}
        scope = {**self._scope, "type": "http", "method": method, "headers": headers, "state": state}
        sent = False

        async def receive() -> Message:
            nonlocal sent
            if not sent:
                sent = True
                return {"type": "http.request", "body": body, "more_body": False}
            await self._gone.wait()
            return {"type": "http.disconnect"}

        await self._app(scope, receive, take)


class _Whole:
    """An answer of the application, as far as it is no stream."""

    def __init__(self) -> None:
        self.status = 0
        self.body = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._is_stream = False

    async def take(self, message: Message) -> None:
        """Take a message of the application's."""
        if message["type"] == "http.response.start":
            self.status, self._headers = message["status"], message["headers"]
            self._is_stream = Headers(raw=self._headers).get("content-type", "").startswith("text/event-stream")
        else:
            self.body += message.get("body", b"")

    def streams(self, message: Message) -> bool:
        """Whether ``message`` is a piece of a stream of events."""
        return self._is_stream and message["type"] == "http.response.body"

    def as_http(self) -> bytes:
        """The answer on the wire, after which the connection is closed."""
        head = [f"HTTP/1.1 {self.status} {HTTPStatus(self.status).phrase}".encode(), b"connection: close"]
        lines = [name + b": " + value for name, value in self._headers if name.lower() != b"connection"]
        return b"\r\n".join([*head, *lines, b"", b""]) + self.body


def _data_of(event: bytes) -> bytes | None:
    """What an event tells; None of a comment."""
    lines = [line.removeprefix(b"data: ") for line in event.split(b"\n") if line.startswith(b"data: ")]
    return b"\n".join(lines) if lines else None
