"""Errors in Anthropic's shape, for those who use its API: on the paths of messages, and where a header says so.

The id of a request is told under the name that its clients look for, too.
"""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.body_limits import route_path

MESSAGES_PATH = "/v1/messages"
VERSION_HEADER = "anthropic-version"
OVERLOADED = 529  # what its clients know as a server that is to be asked again
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def is_anthropics(scope: Scope) -> bool:
    """Whether a request is of a client of Anthropic's API."""
    path = route_path(scope)
    return path == MESSAGES_PATH or path.startswith(f"{MESSAGES_PATH}/") or VERSION_HEADER in Headers(scope=scope)


def error_body(status: int, message: str) -> dict[str, Any]:
    """The body of an error."""
    kind = _TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": message}}


class AnthropicErrors:
    """Rewrites the errors of the application inside, whatever made them."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http" or not is_anthropics(scope):
            await self._app(scope, receive, send)
            return
        held: list[Message] = []  # the head of an error, and its body so far

        async def send_rewritten(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["request-id"] = headers.get("x-request-id", "")
            if message["type"] == "http.response.start" and message["status"] >= 400:
                held.append(message)
            elif not held:
                await send(message)
            else:
                held.append(message)
                if not message.get("more_body"):
                    for part in _rewritten(held):
                        await send(part)

        await self._app(scope, receive, send_rewritten)


def _rewritten(messages: list[Message]) -> list[Message]:
    start, *parts = messages
    body = b"".join(part.get("body", b"") for part in parts)
    try:
        error = msgspec.json.decode(body, type=dict[str, dict[str, Any]])["error"]
    except (msgspec.DecodeError, KeyError):
        return messages
    status = start["status"]
    headers = MutableHeaders(scope=start)
    told = error_body(status, str(error.get("message", ""))) | {"request_id": headers.get("x-request-id")}
    written = msgspec.json.encode(told)
    headers["content-length"] = str(len(written))
    start["status"] = OVERLOADED if status == 503 else status
    return [start, {"type": "http.response.body", "body": written, "more_body": False}]
