"""Exceptions to OpenAI error bodies: one table. Nothing of a traceback, a path or an address gets out."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from adapters.errors import AdapterError, PackageChangedError
from server.api.routing import methods_of
from server.api.validation import first_fault, json_fault, sentence
from server.errors import (
    AdapterFailedError,
    BudgetError,
    CatalogUnavailableError,
    ConflictError,
    EngineUnavailableError,
    InvalidRequestError,
    LockedError,
    NoRoomError,
    NotFoundError,
    PreconditionFailedError,
    QueueFullError,
    RequestEndsEngineError,
    RequestTimeoutError,
    ServerError,
    StoreError,
    StoreFullError,
)

INVALID_REQUEST = "invalid_request_error"
INTERNAL_ERROR = "internal_error"
RETRY_AFTER_SECONDS = 1
MAX_SHOWN = 200  # characters of a client's path that a message repeats


class GenerationError(Exception):
    """The engine could not compute a sequence; the message is its own and safe to show."""


class ApiError(Exception):
    """An answer that is an error: status, and the four keys of OpenAI's body."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = INVALID_REQUEST,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = type
        self.param = param
        self.code = code
        self.headers = headers or {}

    def body(self) -> dict[str, Any]:
        """OpenAI's error body, always with all four keys."""
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": error}

    def response(self) -> Response:
        """The whole answer."""
        return json_response(self.body(), self.status, self.headers)


def json_response(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A JSON answer of plain data."""
    return Response(msgspec.json.encode(body), status, headers, media_type="application/json")


_BUSY = {
    RequestTimeoutError: (408, "timeout_error", "request_timeout"),
    QueueFullError: (429, "rate_limit_error", "rate_limit_exceeded"),
}


def to_api_error(error: Exception) -> ApiError:
    """What a client is told about ``error``: a bare 500 where it is unknown, for the log alone to explain."""
    match error:
        case ApiError():
            return error
        case ConflictError() | PreconditionFailedError():
            return _as_things_stand(error)
        case InvalidRequestError():
            return ApiError(400, str(error), param=error.param, code=error.code)
        case NotFoundError():
            return ApiError(404, str(error), param=error.param, code=error.code)
        case RequestTimeoutError() | QueueFullError():
            status, kind, code = _BUSY[type(error)]
            return retry_later(status, str(error), type=kind, code=code)
        case CatalogUnavailableError() | NoRoomError():
            return retry_later(503, str(error), code=error.code)
        case AdapterFailedError() | PackageChangedError() | StoreError() | BudgetError() | RequestEndsEngineError():
            status = 507 if isinstance(error, (StoreFullError, BudgetError)) else 503
            headers = {"x-should-retry": "false"}  # it takes an operator, or another request
            return ApiError(status, str(error), type="server_error", code=error.code, headers=headers)
        case EngineUnavailableError():
            return retry_later(503, str(error), code="engine_unavailable")
        case GenerationError():
            return ApiError(500, str(error), type="server_error", code="generation_failed")
        case AdapterError():
            return ApiError(400, str(error), code=error.code)
        case ServerError():
            return ApiError(400, str(error))
        case ValidationError():
            return from_validation(error)
    return ApiError(500, "internal error; the server's log has the reason", type="server_error", code=INTERNAL_ERROR)


def _as_things_stand(error: ConflictError | PreconditionFailedError) -> ApiError:
    """A refusal that repeating the request helps only where it is locked; of a precondition with the tag of now."""
    locked = isinstance(error, LockedError)
    headers = {"Retry-After": str(RETRY_AFTER_SECONDS)} if locked else {"x-should-retry": "false"}
    if isinstance(error, ConflictError):
        return ApiError(409, str(error), param=error.param, code=error.code, headers=headers)
    headers |= {"ETag": error.etag} if error.etag else {}
    return ApiError(412, str(error), param=error.param, code=error.code, headers=headers)


def retry_later(status: int, message: str, *, type: str = "server_error", code: str) -> ApiError:
    """A refusal that has nothing to do with the request itself."""
    return ApiError(status, message, type=type, code=code, headers={"Retry-After": str(RETRY_AFTER_SECONDS)})


def from_validation(error: ValidationError) -> ApiError:
    """The first fault of a body, in one sentence that names the field."""
    if (reason := json_fault(error)) is not None:
        return ApiError(400, reason, code="invalid_json")
    message, param = first_fault(error)
    return ApiError(400, message, param=param)


def from_http(error: HTTPException, request: Request) -> ApiError:
    """Starlette's own refusals: no such route, wrong method."""
    path, method = request.scope["path"][:MAX_SHOWN], request.scope["method"][:MAX_SHOWN]
    if error.status_code == 404:
        return ApiError(404, f"there is no {method} {path} here", code="not_found")
    if error.status_code == 405:
        allowed = ", ".join(methods_of(request.app.router.routes, request.scope))
        message = f"{path} does not take {method}; it takes {allowed}"
        return ApiError(405, message, code="method_not_allowed", headers={"Allow": allowed})
    return ApiError(error.status_code, str(error.detail), headers=dict(error.headers or {}))


def install(app: FastAPI) -> None:
    """Make every known error of ``app`` an OpenAI error body; unknown ones go up to the log of requests."""

    async def on_error(_: Request, error: Exception) -> Response:
        return to_api_error(error).response()

    async def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return from_http(error, request).response()

    async def on_parameters(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        name = str(first["loc"][-1])
        return ApiError(400, f"{name}: {sentence(first)}", param=name).response()

    for kind in (ApiError, GenerationError, ServerError, AdapterError, ValidationError):
        app.add_exception_handler(kind, on_error)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(RequestValidationError, on_parameters)
