"""Errors of the server, drawn once. ``server.api.error_responses`` maps them to HTTP.

ServerError
├── InvalidRequestError      the client's mistake                    400
│   └── ConflictError        not as things stand                     409
├── UnknownModelError        no such base, adapter or version        404
├── QueueFullError           too many requests at once               429
├── EngineUnavailableError   starting, restarting or draining        503
└── EngineStartError         the base cannot be served: ends start-up
"""

from __future__ import annotations


class ServerError(Exception):
    """Root of the server's own errors; messages are safe to show to a client."""


class InvalidRequestError(ServerError):
    """The request cannot be served as it stands. ``param`` names the field at fault."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class ConflictError(InvalidRequestError):
    """The request is sound, but not as things stand: something else has to change first."""


class UnknownModelError(ServerError):
    """No base, adapter or version of that name."""


class QueueFullError(ServerError):
    """More requests are waiting than the configured limit."""


class EngineUnavailableError(ServerError):
    """The engine is not serving at the moment; the request may be repeated."""


class EngineStartError(ServerError):
    """The engine could not start; the message is its reason."""
