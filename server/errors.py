"""Errors of the server, drawn once. ``server.api.error_responses`` maps them to HTTP.

ServerError
├── InvalidRequestError      the client's mistake                    400
│   ├── ConflictError        not as things stand                     409
│   │   └── LockedError      not before something else has ended     409
│   └── PreconditionFailedError  not as the headers ask for           412
├── NotFoundError            nothing of that name                    404
│   ├── UnknownModelError    no such base, adapter or version
│   └── UnknownKeyError      no such API key
├── RequestTimeoutError      it took longer than it may              408
├── QueueFullError           too many requests at once               429
├── EngineUnavailableError   starting, restarting or draining        503
├── RequestEndsEngineError   no engine survives it                   503
├── AdapterFailedError       a version cannot be loaded again        503
├── CatalogUnavailableError  its database does not answer            503
├── StoreError               packages cannot be kept on the disk     503
│   └── StoreFullError       there is no room on it                  507
├── BudgetError              more than the operator allows           507
│   └── NoRoomError          pinned adapters leave no memory for it  503
└── EngineStartError         the base cannot be served: ends start-up
    └── OpenServerError      anybody could do anything: wrong usage
"""

from __future__ import annotations

from adapters.errors import AdapterError


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


class LockedError(ConflictError):
    """What is in the way ends of itself: the request may be repeated."""


class PreconditionFailedError(InvalidRequestError):
    """If-Match or If-None-Match does not hold. ``etag`` is of what is there now, None where there is nothing."""

    def __init__(self, message: str, *, param: str, etag: str | None) -> None:
        super().__init__(message, param=param, code="precondition_failed")
        self.etag = etag


class NotFoundError(ServerError):
    """Nothing of the name, in the field ``param``, that the request gives."""

    param = "name"
    code = "not_found"


class UnknownModelError(NotFoundError):
    """No base, adapter or version of that name."""

    param = "model"
    code = "model_not_found"


class UnknownKeyError(NotFoundError):
    """No API key of that id."""

    param = "id"
    code = "key_not_found"


class RequestTimeoutError(ServerError):
    """The request has taken longer than it may, and was ended."""


class QueueFullError(ServerError):
    """More requests are waiting than the configured limit."""


class EngineUnavailableError(ServerError):
    """The engine is not serving at the moment; the request may be repeated."""


class RequestEndsEngineError(ServerError):
    """The engine ended whenever it computed this request, at last with no other to blame: not to be repeated."""

    code = "request_ends_engine"


class AdapterFailedError(ServerError, AdapterError):
    """What is stored of a version, which was accepted once, cannot be loaded; the message has the reason."""

    code = "adapter_failed"


class CatalogUnavailableError(ServerError):
    """What is served cannot be changed, nor asked for in the database; what is loaded is served on."""

    code = "catalog_unavailable"


class StoreError(ServerError):
    """The disk does not take, or give, packages."""

    code = "store_unavailable"


class StoreFullError(StoreError):
    """The disk, or its quota, is full."""

    code = "insufficient_storage"


ADAPTER_MEMORY = "adapter_memory_exceeded"  # a BudgetError's code, between engine and API process


class BudgetError(ServerError):
    """More than a setting allows; the message says which, and ``code`` is of it. ``nbytes`` is what was too much."""

    def __init__(self, message: str, *, code: str, nbytes: int = 0) -> None:
        super().__init__(message)
        self.code = code
        self.nbytes = nbytes


class NoRoomError(BudgetError):
    """What is asked for would fit, but not beside what an operator keeps there; it may later."""


class EngineStartError(ServerError):
    """The engine could not start; the message is its reason."""


class OpenServerError(EngineStartError):
    """As it is set up, the server would be open to people whom nobody let in."""
