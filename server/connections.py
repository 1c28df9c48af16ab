"""uvicorn for clients that cannot be trusted: connections are counted, and cut when they neither send nor take.

uvicorn alone waits for ever for the rest of a head, and for a client to take its answer. How long a body may take is
``server.api.body_limits``'s.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
import uuid
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from typing import Any

import h11
import msgspec
import uvicorn
from starlette.types import ASGIApp
from typing_extensions import override
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from server.api.error_responses import INVALID_REQUEST, RETRY_AFTER_SECONDS, ApiError
from server.api.large_answer import UNSENT
from server.api.middleware import REQUEST_ID
from server.errors import EngineStartError
from server.http_parser import Parser
from server.response_socket import ResponseSocket
from server.settings import ServerConfig

log = logging.getLogger("server.connections")
request_log = logging.getLogger("server.requests")

KEEP_ALIVE_SECONDS = 75
CLOSE_SECONDS = 5  # for answers on their way out, once the drain is over
SEND_BUFFER_BYTES = 128 * 2**10  # the system's own, per connection: left alone it keeps megabytes for who does not read
READ_BYTES = 64 * 1024  # at once, of a body whose length is known
PARSED_BYTES = 4 * 1024  # at once, of anything else: heads and small chunks take a few microseconds a byte to parse
SWEEP_SECONDS = 0.25
REPORT_SECONDS = 10.0
HEAD_BYTES = 64 * 1024  # of a request's line and headers, as uvicorn has it
PROMPT_SECONDS = 1.0  # in which the head of a request comes, or its connection may have to give way to others
HIGHEST_BACKLOG = 512  # connections that wait to be accepted
ACCEPTED_AT_ONCE = 1  # in a turn of the event loop; asyncio fails, and tries again, that often without descriptors
OTHER_DESCRIPTORS = 128  # files, the engine, packages that are being unpacked


@dataclass(frozen=True)
class ConnectionLimits:
    """How many connections there may be, and how long a client may take over a head and over taking an answer."""

    connections: int
    backlog: int
    head_seconds: float
    send_seconds: float
    unsent_bytes: int
    message_bytes: int

    @classmethod
    def of(cls, config: ServerConfig) -> ConnectionLimits:
        """Those of a configuration that this process has file descriptors for; raises its own limit if it may."""
        spare = raise_descriptor_limit(config.max_connections + 2 * HIGHEST_BACKLOG + OTHER_DESCRIPTORS)
        spare -= OTHER_DESCRIPTORS
        if spare < 4:
            raise EngineStartError("too few files may be open (ulimit -n); allow this process some hundreds")
        connections = min(config.max_connections, spare // 2)
        if connections < config.max_connections:
            log.warning("at most %d connections, not %d: see ulimit -n", connections, config.max_connections)
        backlog, unsent = min(HIGHEST_BACKLOG, spare // 4), int(config.max_unsent_mb * 2**20)
        message = int(config.max_body_mb * 2**20)
        return cls(connections, backlog, config.head_seconds, config.send_seconds, unsent, message)


def raise_descriptor_limit(wanted: int) -> int:
    """How many files this process may open, which is ``wanted`` if the system allows it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        with suppress(ValueError, OSError):  # some systems have a limit besides
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
            soft = most
    return wanted if soft == resource.RLIM_INFINITY else soft


@dataclass
class ConnectionFaults:
    """What went wrong with connections since it was last reported: one line of the log for any number of them."""

    counts: Counter[str] = field(default_factory=Counter)
    reported: float = float("-inf")

    def report(self, now: float) -> None:
        """Log what there is, if it is time."""
        if self.counts and now - self.reported >= REPORT_SECONDS:
            log.warning("connections: %s", ", ".join(f"{count} {fault}" for fault, count in self.counts.items()))
            self.counts.clear()
            self.reported = now


class Waiting:
    """The connections that wait for a request, in the order in which they began to: who has to give way is found at
    once, however many there are.
    """

    def __init__(self) -> None:
        self._idle: dict[Connection, None] = {}
        self._heads: dict[Connection, None] = {}

    def note(self, connection: Connection) -> None:
        """``connection`` may have become idle, have begun a head, or do neither any more."""
        for kept, waits in ((self._idle, connection.is_idle), (self._heads, connection.wants_head)):
            if waits:
                kept.setdefault(connection)
            else:
                kept.pop(connection, None)

    def forget(self, connection: Connection) -> None:
        """It is lost."""
        self._idle.pop(connection, None)
        self._heads.pop(connection, None)

    def idle(self) -> Connection | None:
        """The one that has been idle longest."""
        return next(iter(self._idle), None)

    def slowest(self, other_than: Connection) -> Connection | None:
        """The one whose head has been awaited longest."""
        return next((found for found in self._heads if found is not other_than), None)


@dataclass(frozen=True)
class Shared:
    """What all connections of a server know of each other."""

    limits: ConnectionLimits
    faults: ConnectionFaults = field(default_factory=ConnectionFaults)
    waiting: Waiting = field(default_factory=Waiting)


def _only_failures(record: logging.LogRecord) -> bool:
    """uvicorn warns of every bad request and every upgrade; what is answered has its line in the log already."""
    return record.exc_info is not None and not isinstance(record.exc_info[1], asyncio.CancelledError)


_protocol_log = logging.getLogger("server.connections.protocol")
_protocol_log.addFilter(_only_failures)


class Connection(H11Protocol):
    """One connection; ``sweep`` is called a few times a second."""

    def __init__(
        self,
        shared: Shared,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.conn = self._parser = Parser(config.h11_max_incomplete_event_size or HEAD_BYTES)
        self.logger = _protocol_log
        self.access_log = False  # the application has a log of requests
        self._limits, self._faults, self._waiting = shared.limits, shared.faults, shared.waiting
        self._head_since = 0.0  # when the head that is being waited for began
        self._upgraded = False  # to a socket, which has the transport now
        self._unsent = 0
        self._taken_at = 0.0  # when the client last took something, or had nothing to take

    @override
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        transport.max_size = PARSED_BYTES  # type: ignore[attr-defined]
        self._head_since = self._taken_at = self.loop.time()
        self._waiting.note(self)
        if len(self.connections) > self._limits.connections and not self._make_room():
            self._faults.counts["refused over --max-connections"] += 1
            self._refuse(
                503, "too many connections are open; try again", {"retry-after": str(RETRY_AFTER_SECONDS)}, "overloaded"
            )

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._waiting.forget(self)

    @override
    def data_received(self, data: bytes) -> None:
        if self.is_idle:
            self._head_since = self.loop.time()
        super().data_received(data)

    @override
    def handle_events(self) -> None:
        super().handle_events()
        if self._upgraded:
            return
        sized = self.conn.their_state is h11.SEND_BODY and not self._parser.is_chunked
        self.transport.max_size = READ_BYTES if sized else PARSED_BYTES  # type: ignore[attr-defined]
        self._waiting.note(self)

    @override
    def _should_upgrade_to_ws(self) -> bool:
        return self.scope["method"] == "GET" and self.scope["path"].rstrip("/").endswith("/responses")

    @override
    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        """Give the connection to a socket, which is counted in its place."""
        limits = self._limits
        opened = ResponseSocket(
            self.app, dict(self.scope), most_bytes=limits.message_bytes, send_seconds=limits.send_seconds
        )
        self._upgraded = True
        self._waiting.forget(self)
        self.connections.discard(self)
        self.connections.add(opened)  # type: ignore[arg-type]
        opened.on_lost = partial(self.connections.discard, opened)
        self.transport.max_size = READ_BYTES  # type: ignore[attr-defined]
        self.transport.set_protocol(opened)
        opened.connection_made(self.transport)
        assert opened.task is not None
        self.tasks.add(opened.task)
        opened.task.add_done_callback(self.tasks.discard)
        if early := self.conn.trailing_data[0]:
            opened.data_received(early)

    @override
    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._waiting.note(self)

    @override
    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP. An application that waits for the rest of a body sees the client leave."""
        begun = self._answering and self.cycle.response_started
        if self._answering:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if begun:
            self.transport.close()
            return
        request_id = self._refuse(400, "this is not a valid HTTP request", {}, "invalid_http")
        if not self._answering:  # else the application writes the line
            fields = {"request_id": request_id, "client": self.client[0] if self.client else None, "status": 400}
            request_log.info("a request that is no HTTP", extra={"fields": fields})

    def sweep(self, now: float) -> None:
        """Cut the connection if the client takes nothing, or does not finish a head."""
        if self._is_deaf(now):
            self.cut("cut, for nothing was taken for --send-seconds")
        elif self.wants_head and now - self._head_since > self._limits.head_seconds:
            self._time_out("cut, for a head took longer than --head-seconds")

    def give_way(self, now: float, patience: float) -> bool:
        """Close the connection if it is idle, or its head has not come for so long."""
        if self.is_idle:
            self.shutdown()
        elif self.wants_head and now - self._head_since >= patience:
            self._time_out("cut, for a head that did not come when others did")
        else:
            return False
        self._waiting.note(self)
        return True

    @property
    def unsent(self) -> int:
        """Bytes of answers that the client has not taken, beyond what the system keeps for it."""
        held: int = self.cycle.scope["state"].get(UNSENT, 0) if self._answering else 0
        return self.transport.get_write_buffer_size() + held

    def cut(self, fault: str) -> None:
        """End the connection at once."""
        self._faults.counts[fault] += 1
        self.transport.abort()

    @property
    def wants_head(self) -> bool:
        """Whether a request is awaited, or a part of its head has come."""
        return not (self._answering or self.is_idle or self.transport.is_closing())

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def is_idle(self) -> bool:
        """Kept alive after an answer; nothing of a next request has come."""
        return self.timeout_keep_alive_task is not None and not self.transport.is_closing()

    def _is_deaf(self, now: float) -> bool:
        unsent = self.unsent
        # While the application may write the buffer can grow although the client takes something.
        settled = self.flow.write_paused or not self._answering
        if not unsent or not settled or unsent < self._unsent:
            self._taken_at = now
        self._unsent = unsent
        return now - self._taken_at > self._limits.send_seconds

    def _time_out(self, fault: str) -> None:
        """Wait no longer for a head. Who has not begun one is no fault: browsers and probes connect in advance."""
        if self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]:
            self.transport.abort()
            return
        self._faults.counts[fault] += 1
        if self.conn.their_state is h11.IDLE:
            self._refuse(408, "the head of the request did not arrive in time", {}, "head_timeout")
        else:
            self.transport.abort()

    def _make_room(self) -> bool:
        """Close a connection that is idle, or else the one whose head has been awaited longest; false if all work."""
        now = self.loop.time()
        return any(
            c is not None and c.give_way(now, PROMPT_SECONDS)
            for c in (self._waiting.idle(), self._waiting.slowest(self))
        )

    def _refuse(self, status: int, message: str, headers: dict[str, str], code: str) -> str:
        """Answer without the application, and close; returns the id that the answer bears."""
        kind, request_id = INVALID_REQUEST if status < 500 else "server_error", uuid.uuid4().hex
        body = msgspec.json.encode(ApiError(status, message, type=kind, code=code).body())
        lines = {
            "content-type": "application/json",
            "content-length": str(len(body)),
            "connection": "close",
            REQUEST_ID: request_id,
            **headers,
        }
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        self.transport.write(f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n{head}\r\n".encode() + body)
        if self.conn.our_state is not h11.ERROR:
            self.conn.send_failed()
        self.transport.close()
        return request_id


class HttpServer(uvicorn.Server):
    """uvicorn, serving ``app`` by Connections."""

    def __init__(self, app: ASGIApp, config: ServerConfig, *, port: int = 0) -> None:
        self._limits = ConnectionLimits.of(config)
        shared = Shared(self._limits)
        self._faults = shared.faults
        self._sweeping: asyncio.Task[None] | None = None
        super().__init__(
            uvicorn.Config(
                app,
                port=port,
                http=partial(Connection, shared),  # type: ignore[arg-type]
                backlog=ACCEPTED_AT_ONCE,
                log_config=None,
                access_log=False,
                server_header=False,
                ws="none",
                lifespan="on",
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=CLOSE_SECONDS,
            )
        )

    @override
    async def startup(self, sockets: Any = None) -> None:
        """Begin to serve."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._on_loop_error)
        self._sweeping = loop.create_task(self._sweep())
        await super().startup(sockets)
        for sock in sockets or ():
            sock.listen(self._limits.backlog)  # more may wait than are accepted at once

    @override
    async def shutdown(self, sockets: Any = None) -> None:
        """Close what is open."""
        await super().shutdown(sockets)
        if self._sweeping is not None:
            self._sweeping.cancel()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            now = asyncio.get_running_loop().time()
            connections = self._connections()
            for connection in connections:
                connection.sweep(now)
            self._make_room(connections)
            self._faults.report(now)

    def _free_descriptors(self, now: float) -> None:
        """Close who says nothing; only where there is none, who was answered and may ask again."""
        connections = self._connections()
        silent = [connection for connection in connections if connection.wants_head]
        for connection in silent or connections:
            connection.give_way(now, PROMPT_SECONDS / 2)

    def _connections(self) -> list[Connection]:
        return [c for c in self.server_state.connections if isinstance(c, Connection)]

    def _make_room(self, connections: Iterable[Connection]) -> None:
        """Cut those that leave most untaken, where all together leave too much."""
        unsent = sum(connection.unsent for connection in connections)
        for connection in sorted(connections, key=lambda connection: connection.unsent, reverse=True):
            if unsent <= self._limits.unsent_bytes:
                return
            unsent -= connection.unsent
            connection.cut("cut, for too much was not taken (--max-unsent-mb)")

    def _on_loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Of descriptors that have run out asyncio tells for each connection, with a traceback."""
        if "out of system resource" in context["message"]:
            self._faults.counts["not accepted: no file descriptor is left"] += 1
            self._free_descriptors(loop.time())  # asyncio accepts again in a second
        else:
            loop.default_exception_handler(context)
