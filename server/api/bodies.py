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
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.error_responses import ApiError, retry_later

DISCARD_BYTES = 4 * 2**20
DISCARD_SECONDS = 5.0
FREE_BYTES = 64 * 2**10  # of each body, which no budget counts: ordinary requests always get through
SLOWEST_BYTES_PER_SECOND = 64 * 2**10


@dataclass(frozen=True)
class BodyRule:
    """What a route allows: ``limit`` bytes; ``counted`` bodies are read into memory, others streamed to disk."""

    limit: int
    counted: bool = True


class BodyBudget:
    """Bytes of the bodies in memory, over all requests."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.held = 0

    def take(self, nbytes: int) -> None:
        """Count more bytes. Raises ApiError, a 503, when there is no room for them."""
        if self.held + nbytes > self._limit:
            raise retry_later(503, "too many large requests are arriving at once; try again", code="overloaded")
        self.held += nbytes

    def give_back(self, nbytes: int) -> None:
        """Those bytes are no longer in memory."""
        self.held -= nbytes


class BodyLimit:
    """Holds every body to its route's rule, to ``seconds`` (and more for what arrives), and to a common budget.

    ``scope["state"]["body"]`` is the Body; whoever has made something else of it may ``release`` it.
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
        self._patience = seconds
        self._seen = 0
        self._held = 0

    async def receive(self) -> Message:
        """The next message. Raises ApiError for a body that is too large or too slow, or where the budget is spent."""
        if self._complete:
            return await self._receive()
        if (self._announced or 0) > self._rule.limit:
            raise too_large(self._rule.limit)
        message = await self._in_time()
        if self._seen > self._rule.limit:
            raise too_large(self._rule.limit)
        if self._rule.counted and (more := self._seen - FREE_BYTES - self._held) > 0:
            self._budget.take(more)
            self._held += more
        return message

    def release(self) -> None:
        """Nothing of the body is in memory any more."""
        self._budget.give_back(self._held)
        self._held = 0

    async def answer(self, message: Message, send: Send) -> None:
        """Send a message of the response; where it ends before the body does, throw the rest of that away first."""
        if message["type"] == "http.response.start" and self._left() > DISCARD_BYTES:
            MutableHeaders(scope=message)["connection"] = "close"
        if message["type"] != "http.response.body" or message.get("more_body") or self._complete:
            await send(message)
            return
        await send({**message, "more_body": True})
        await self._discard()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _in_time(self) -> Message:
        """Only the time spent waiting for the client counts."""
        began = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(self._patience):
                message = await self._next()
        except TimeoutError as error:
            raise ApiError(408, "the body did not arrive in time", code="body_timeout") from error
        nbytes = len(message.get("body", b""))
        self._patience += nbytes / SLOWEST_BYTES_PER_SECOND - (asyncio.get_running_loop().time() - began)
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
        end = self._seen + DISCARD_BYTES
        with suppress(TimeoutError):
            async with asyncio.timeout(DISCARD_SECONDS):
                while not self._complete and self._seen < end:
                    await self._next()


def route_path(scope: Scope) -> str:
    """The path below ``--root-path``, whether or not the proxy has taken that off."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    return path.removeprefix(root) if root and path.startswith(root + "/") else path


def too_large(limit: int) -> ApiError:
    """The refusal of a body."""
    return ApiError(413, f"the body is larger than the limit of {limit / 2**20:g} MiB", code="body_too_large")
