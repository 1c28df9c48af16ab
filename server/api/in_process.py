"""Requests that this server makes to itself, for an owner of batches: they take the way of all others, behind them."""

from __future__ import annotations

import asyncio

import msgspec
from starlette.types import ASGIApp, Message

from server.api.auth import BEHIND, owner_caller
from server.api.context import ServerContext
from server.api.error_responses import ApiError
from server.batches.service import Reply


async def post(app: ASGIApp, context: ServerContext, path: str, body: bytes, owner: str) -> Reply:
    """The answer of ``app`` to a JSON ``body``, as the key of ``owner`` would get it: if that may still infer."""
    caller = owner_caller(context, owner)
    if caller is None:
        error = ApiError(401, "the key whose batch this is may not infer any more", code="invalid_api_key")
        return Reply(error.status, error.body(), "")
    headers = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": headers,
        "client": None,
        "server": ("127.0.0.1", 0),
        "state": {BEHIND: caller},
    }
    sent = [{"type": "http.request", "body": body, "more_body": False}]
    status, request_id, parts = 500, "", []

    async def receive() -> Message:
        if sent:
            return sent.pop()
        return await _forever()

    async def send(message: Message) -> None:
        nonlocal status, request_id
        if message["type"] == "http.response.start":
            status = message["status"]
            request_id = dict(message["headers"]).get(b"x-request-id", b"").decode("latin-1")
        elif message["type"] == "http.response.body":
            parts.append(bytes(message.get("body", b"")))

    await app(scope, receive, send)
    return Reply(status, _decoded(b"".join(parts)), request_id)


async def _forever() -> Message:
    """The client of such a request does not leave."""

    await asyncio.Event().wait()
    raise AssertionError("nobody sets it")


def _decoded(raw: bytes) -> object:
    try:
        return msgspec.json.decode(raw)
    except msgspec.DecodeError:
        return raw.decode("utf-8", "replace")
