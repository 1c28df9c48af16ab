"""The bodies of requests as they arrive: their size, their time, and the memory of all of them together.

A route that never asks for the body (the key is wrong, the path unknown) answers at once. What is left of the body is
then thrown away up to a bound, because most clients listen only once they have sent, and the connection closes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.error_responses import ApiError, retry_later

DISCARD_BYTES = 8 * 2**20
DISCARD_TOO_LARGE_BYTES = 64 * 2**20  # of a body that may be sent, and is only too large
DISCARD_SECONDS = 5.0
FREE_BYTES = 64 * 2**10  # of each body, which no budget counts: ordinary requests always get through
SLOWEST_BYTES_PER_SECOND = 32 * 2**10
SILENT_SECONDS = 1.0  # after which a client may have to give way to others


@dataclass(frozen=True)
class BodyRule:
    """What a route allows: ``limit`` bytes; ``counted`` bodies are read into memory, others streamed to disk."""

    limit: int
    counted: bool = True


class BodyBudget:
    """Bytes of the bodies in memory, over all requests. Where they are too many the most silent client gives way."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held: dict[Body, int] = {}

    @property
    def held(self) -> int:
        """Bytes that are counted now."""
        return sum(self._held.values())

    def take(self, body: Body, nbytes: int) -> None:
        """Count ``nbytes`` in all for ``body``. Raises ApiError, a 503, when there is no room for them."""
        more = nbytes - self._held.get(body, 0)
        while self.held + more > self._limit:
            silent = max(self._held, key=lambda held: held.silent_seconds, default=body)
            if silent is body or silent.silent_seconds < SILENT_SECONDS:
                raise retry_later(503, "too many large requests are arriving at once; try again", code="overloaded")
            silent.give_up()
        self._held[body] = nbytes

    def give_back(self, body: Body) -> None:
        """Nothing of ``body`` is in memory any more."""
        self._held.pop(body, None)


class BodyLimit:
    """Holds every body to its route's rule, to ``seconds`` (and more for what arrives), and to a common budget.

    ``scope["state"]["body"]`` is the Body.
    """

    def __init__(self, app: ASGIApp, rule: Callable[[str, str], BodyRule], budget: BodyBudget, seconds: float) -> None:
        self._app = app
        self._rule = rule
        self._budget = budget
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = Body(scope, receive, self._rule(scope["method"], route_path(scope)), self._budget, self._seconds)
        scope.setdefault("state", {})["body"] = body

        async def finish(message: Message) -> None:
            await body.answer(message, send)

        try:
            await self._app(scope, body.receive, finish)
        finally:
            body.release()


class Body:
    """One request's body."""

    def __init__(self, scope: Scope, receive: Receive, rule: BodyRule, budget: BodyBudget, seconds: float) -> None:
        headers = Headers(scope=scope)
        announced = headers.get("content-length", "")
        self._announced = int(announced) if announced.isdecimal() else None
        self._complete = not self._announced and "transfer-encoding" not in headers
        self._receive = receive
        self._rule = rule
        self._budget = budget
        self._seconds = self._patience = seconds
        self._seen = 0
        self._late = False
        self._quota = DISCARD_BYTES
        self._waiting: asyncio.Timeout | None = None
        self._waiting_since = 0.0

    async def receive(self) -> Message:
        """The next message. Raises ApiError for a body that is too large or too slow, or where the budget is spent."""
        if self._complete:
            return await self._receive()
        if (self._announced or 0) > self._rule.limit:
            raise too_large(self._rule.limit)
        message = await self._in_time()
        if self._seen > self._rule.limit:
            raise too_large(self._rule.limit)
        if self._rule.counted and self._seen > FREE_BYTES:
            self._budget.take(self, self._seen - FREE_BYTES)
        return message

    @property
    def silent_seconds(self) -> float:
        """How long the client has sent nothing, although it was asked."""
        return asyncio.get_running_loop().time() - self._waiting_since if self._waiting else 0.0

    def give_up(self) -> None:
        """Wait no longer."""
        self.release()
        if self._waiting is not None:
            self._waiting.reschedule(asyncio.get_running_loop().time())

    def release(self) -> None:
        """Nothing of the body is in memory any more."""
        self._budget.give_back(self)

    async def answer(self, message: Message, send: Send) -> None:
        """Send a message of the response; where it ends before the body does, throw the rest of that away first."""
        if message["type"] == "http.response.start":
            self._quota = DISCARD_TOO_LARGE_BYTES if message["status"] == 413 else DISCARD_BYTES
            if self._late or self._left() > self._quota:
                MutableHeaders(scope=message)["connection"] = "close"
        if message["type"] != "http.response.body" or message.get("more_body") or self._complete or self._late:
            await send(message)
            return
        await send({**message, "more_body": True})
        await self._discard()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _in_time(self) -> Message:
        """Only the time spent waiting for the client counts; a silence may not be longer than the whole at first."""
        self._waiting_since = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(min(self._patience, self._seconds)) as self._waiting:
                message = await self._next()
        except TimeoutError as error:
            self._late = True
            raise ApiError(408, "the body did not arrive in time", code="body_timeout") from error
        finally:
            self._patience -= self.silent_seconds
            self._waiting = None
        self._patience += len(message.get("body", b"")) / SLOWEST_BYTES_PER_SECOND
        return message

    async def _next(self) -> Message:
        message = await self._receive()
        self._seen += len(message.get("body", b""))
        self._complete = not message.get("more_body")
        return message

    def _left(self) -> float:
        """Bytes still to come, as far as is known."""
        if self._complete:
            return 0
        return float("inf") if self._announced is None else self._announced - self._seen

    async def _discard(self) -> None:
        end = self._seen + self._quota
        with suppress(TimeoutError):
            async with asyncio.timeout(DISCARD_SECONDS):
                while not self._complete and self._seen < end:
                    await self._next()


def forget_body(request: Request) -> None:
    """The body is parsed: it need not stay in memory, nor in the budget, for as long as the answer takes."""
    request.__dict__.pop("_body", None)  # where starlette keeps what ``Request.body`` has read
    request.scope["state"]["body"].release()


def route_path(scope: Scope) -> str:
    """The path below ``--root-path``, whether or not the proxy has taken that off."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    return path.removeprefix(root) if root and path.startswith(root + "/") else path


def too_large(limit: int) -> ApiError:
    """The refusal of a body."""
    return ApiError(413, f"the body is larger than the limit of {limit / 2**20:g} MiB", code="body_too_large")
