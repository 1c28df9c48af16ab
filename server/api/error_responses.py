"""Exceptions to OpenAI error bodies: one table. Nothing of a traceback, a path or an address gets out."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Scope

from adapters.errors import AdapterError
from server.errors import (
    ConflictError,
    EngineUnavailableError,
    InvalidRequestError,
    QueueFullError,
    ServerError,
    UnknownModelError,
)

INVALID_REQUEST = "invalid_request_error"
INTERNAL_ERROR = "internal_error"
RETRY_AFTER_SECONDS = 1


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


def to_api_error(error: Exception) -> ApiError:
    """What a client is told about ``error``: a bare 500 where it is unknown, for the log alone to explain."""
    match error:
        case ApiError():
            return error
        case ConflictError():
            headers = {"x-should-retry": "false"}
            return ApiError(409, str(error), param=error.param, code=error.code, headers=headers)
        case InvalidRequestError():
            return ApiError(400, str(error), param=error.param, code=error.code)
        case UnknownModelError():
            return ApiError(404, str(error), param="model", code="model_not_found")
        case QueueFullError():
            return retry_later(429, str(error), type="rate_limit_error", code="rate_limit_exceeded")
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


def retry_later(status: int, message: str, *, type: str = "server_error", code: str) -> ApiError:
    """A refusal that has nothing to do with the request itself."""
    return ApiError(status, message, type=type, code=code, headers={"Retry-After": str(RETRY_AFTER_SECONDS)})


def from_validation(error: ValidationError) -> ApiError:
    """The first fault of a body, in one sentence that names the field."""
    details = error.errors(include_url=False, include_input=False, include_context=False)
    first = details[0]
    if first["type"] == "json_invalid":
        return ApiError(
            400, f"the body is not valid JSON: {first['msg'].removeprefix('Invalid JSON: ')}", code="invalid_json"
        )
    # Of a field that may have several forms, the error deepest inside is that of the form the client meant.
    same_field = [d for d in details if d["loc"][:1] == first["loc"][:1]]
    param = max((_path(d["loc"]) for d in same_field), key=lambda path: len(path or ""))
    message = "; or: ".join(dict.fromkeys(_plain(d["msg"]) for d in same_field if _path(d["loc"]) == param))
    if param is None and message.startswith("`"):  # a rule between fields names its field first
        return ApiError(400, message, param=message.split("`")[1])
    return ApiError(400, f"{param or 'body'}: {message}", param=param)


def _plain(message: str) -> str:
    return message.removeprefix("Value error, ").replace("Input should be", "must be")


def _path(loc: tuple[int | str, ...]) -> str | None:
    """``messages[0].content`` from pydantic's location; names of union members are left out."""
    out = ""
    for part in loc:
        if isinstance(part, int):
            out += f"[{part}]"
        elif part.isidentifier() and part not in ("str", "int", "float", "bool"):
            out += f".{part}" if out else part
    return out or None


def from_http(error: HTTPException, scope: Scope) -> ApiError:
    """Starlette's own refusals: no such route, wrong method."""
    path, method = scope.get("path", ""), scope.get("method", "")
    if error.status_code == 404:
        return ApiError(404, f"there is no {method} {path} here", code="not_found")
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        message = f"{path} does not take {method}" + (f"; it takes {allowed}" if allowed else "")
        return ApiError(405, message, code="method_not_allowed", headers=dict(error.headers or {}))
    return ApiError(error.status_code, str(error.detail), headers=dict(error.headers or {}))


def install(app: FastAPI) -> None:
    """Make every known error of ``app`` an OpenAI error body; unknown ones go up to the log of requests."""

    async def on_error(_: Request, error: Exception) -> Response:
        return to_api_error(error).response()

    async def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return from_http(error, request.scope).response()

    async def on_parameters(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        name = str(first["loc"][-1])
        return ApiError(400, f"{name}: {first['msg']}", param=name).response()

    for kind in (ApiError, GenerationError, ServerError, AdapterError, ValidationError):
        app.add_exception_handler(kind, on_error)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(RequestValidationError, on_parameters)
