"""What happens to every request: an id, a size limit, one log line. Plain ASGI, so that streams pass untouched."""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.error_responses import ApiError

log = logging.getLogger("server.requests")

REQUEST_ID = "x-request-id"
_SOUND_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_QUIET = ("/health", "/ready", "/metrics")


class RequestLog:
    """Gives each request an id (the client's own where it is sound) and logs it when it has ended."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(REQUEST_ID, "")
        request_id = given if _SOUND_ID.fullmatch(given) else uuid.uuid4().hex
        facts: dict[str, object] = {}
        scope.setdefault("state", {}).update(request_id=request_id, facts=facts)
        started, status = time.perf_counter(), 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            self._write(scope, status, time.perf_counter() - started, request_id, facts)

    def _write(self, scope: Scope, status: int, seconds: float, request_id: str, facts: dict[str, object]) -> None:
        level = logging.DEBUG if scope["path"] in _QUIET else logging.INFO
        entry = {
            "request_id": request_id,
            "method": scope["method"],
            "path": scope["path"],
            "status": status,
            "seconds": round(seconds, 4),
            **facts,
        }
        log.log(level, "%s %s %d", scope["method"], scope["path"], status, extra={"fields": entry})


DISCARD_BYTES = 64 * 2**20  # read and thrown away before a refusal: most clients listen only once they have sent


class BodyLimit:
    """Refuses bodies larger than ``limit(method, path)`` bytes: by their announced length, else while they are read."""

    def __init__(self, app: ASGIApp, limit: Callable[[str, str], int]) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._limit(scope["method"], scope["path"])
        announced = Headers(scope=scope).get("content-length", "0")
        if announced.isdigit() and int(announced) > limit:
            await _discard(receive)
            await too_large(limit).response()(scope, receive, send)
            return
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > limit:
                if message.get("more_body"):
                    await _discard(receive)
                raise too_large(limit)
            return message

        await self._app(scope, counted, send)


async def _discard(receive: Receive) -> None:
    left = DISCARD_BYTES
    while left > 0:
        message = await receive()
        if not message.get("more_body"):
            return
        left -= len(message["body"])


def too_large(limit: int) -> ApiError:
    """The refusal of a body; the connection closes, because the rest of the body is not read."""
    message = f"the body is larger than the limit of {limit / 2**20:g} MiB"
    return ApiError(413, message, code="body_too_large", headers={"Connection": "close"})
