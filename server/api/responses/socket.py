"""What is said over a socket of responses: its messages read, its errors written, and what it remembers.

A connection remembers its last response, kept or not; who goes on from it and fails has to begin anew.
"""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import Request

from server.api.responses.items import Item

RECOLLECTION = "recollection"  # in a request's state
Event = dict[str, Any]
_OVER_HTTP = ("stream", "stream_options", "background")


class Recollection:
    """What one connection remembers: the items of a conversation, by the id of the response that is its end."""

    def __init__(self) -> None:
        self._items: dict[str, list[Item]] = {}
        self._previous = ""

    def begin(self, text: str) -> bytes | Event:
        """A message as the body of a request; as an error where it is none."""
        self._previous = ""
        try:
            message = msgspec.json.decode(text, type=dict[str, Any])
        except (ValueError, RecursionError):
            return _error("invalid_json", "the message is no JSON object")
        if message.pop("type", None) != "response.create":
            return _error("unknown_event", "only messages of the type response.create are taken", "type")
        for field in _OVER_HTTP:
            if message.get(field):
                return _error("invalid_value", f"{field}: is for requests over HTTP; leave it out", field)
        message.pop("stream_options", None)
        self._previous = previous if isinstance(previous := message.get("previous_response_id"), str) else ""
        return msgspec.json.encode({**message, "stream": True, "background": False})

    def get(self, id: str) -> list[Item] | None:
        """The conversation that ends with the response ``id``."""
        return self._items.get(id)

    def remember(self, id: str, items: list[Item]) -> None:
        """The last response is this one, at the end of ``items``."""
        self._items = {id: items}

    def see(self, event: bytes) -> None:
        """Something is told to the client."""
        if event.startswith(b'{"type":"response.failed"'):
            self.fail()

    def fail(self) -> None:
        """The turn failed: what it went on from is forgotten."""
        self._items.pop(self._previous, None)


def recollection_of(request: Request) -> Recollection | None:
    """The memory of the connection that a request came over."""
    found = request.scope["state"].get(RECOLLECTION)
    return found if isinstance(found, Recollection) else None


def error_event(status: int, body: bytes) -> Event:
    """An error answer as an event."""
    try:
        error = msgspec.json.decode(body, type=dict[str, dict[str, Any]])["error"]
    except (msgspec.DecodeError, KeyError):
        error = {"type": "server_error", "code": None, "message": "the request failed", "param": None}
    told = {key: error.get(key) for key in ("code", "message", "param")}
    return {"type": "error", "status": status, "sequence_number": 0, **told, "error": error}


def _error(code: str, message: str, param: str | None = None) -> Event:
    error = {"type": "invalid_request_error", "code": code, "message": message, "param": param}
    return error_event(400, msgspec.json.encode({"error": error}))
