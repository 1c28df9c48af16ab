"""Where a request comes from, by its headers Host and Origin; and CORS, for the origins that an operator names.

A web page in somebody's browser reaches servers that its author cannot, but it cannot hide its origin; one whose name
was made to point at this machine (DNS rebinding) shows itself in the Host.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp
from typing_extensions import override

from server.api.error_responses import ApiError
from server.setting_kinds import read_origin
from server.settings import is_loopback_name

_HOST = re.compile(r"([A-Za-z0-9._~!$&'()*+,;=%-]*|\[[0-9A-Fa-f:.]+(?:%[A-Za-z0-9._~-]+)?\])(?::[0-9]*)?")
_RATES = [f"x-ratelimit-{fact}-{what}" for fact in ("limit", "remaining", "reset") for what in ("requests", "tokens")]
_EXPOSED = (
    "x-request-id",
    "request-id",
    "x-hotswap-adapter",
    "x-should-retry",
    "retry-after",
    "retry-after-ms",
    "etag",
    *_RATES,
)


def check_host(headers: Headers) -> None:
    """Raise ApiError for a Host that is none."""
    for host in headers.getlist("host"):
        _name(host)


def check_local(headers: Headers, *, allowed: Collection[str], any_host: bool, refusal: str) -> None:
    """Let only programs through, and pages of this machine or an ``allowed`` origin; otherwise raise ApiError.

    The Host must be this machine too, or that of an allowed origin, unless ``any_host``.
    """
    for origin in headers.getlist("origin"):
        if origin.lower() not in allowed and not is_loopback_name(_origin_name(origin)):
            raise _refused(refusal)
    names = {_origin_name(origin) for origin in allowed}
    for host in () if any_host else headers.getlist("host"):
        if not is_loopback_name(name := _name(host)) and name not in names:
            raise _refused(refusal)


def _origin_name(origin: str) -> str:
    """The host of an Origin; empty for an opaque one. Raises ApiError for what is no origin."""
    if origin == "null":
        return ""
    try:
        return _name(read_origin(origin).partition("://")[2])
    except ValueError as error:
        raise ApiError(400, "the header Origin is malformed", code="invalid_header") from error


def _name(host: str) -> str:
    found = _HOST.fullmatch(host.strip())
    if found is None:
        raise ApiError(400, "the header Host is malformed", code="invalid_header")
    return found[1].strip("[]").lower().removesuffix(".")


def _refused(why: str) -> ApiError:
    return ApiError(403, why, type="permission_error", code="origin_not_allowed")


class Cors(CORSMiddleware):
    """CORS for the origins, methods and headers an operator named; cookies of proxies pass with ``credentials``."""

    def __init__(
        self, app: ASGIApp, *, origins: Sequence[str], methods: Sequence[str], headers: Sequence[str], credentials: bool
    ) -> None:
        super().__init__(
            app,
            allow_origins=origins,
            allow_methods=methods,
            allow_headers=headers,
            allow_credentials=credentials,
            expose_headers=_EXPOSED,
            allow_private_network=True,
        )

    @override
    def preflight_response(self, request_headers: Headers) -> Response:
        """The answer to a preflight; a refusal has the form of our errors."""
        answer = super().preflight_response(request_headers)
        if answer.status_code == 200:
            return answer
        message = f"{bytes(answer.body).decode()}; the server's --cors-origin names the origins that may use it"
        headers = {key: value for key, value in answer.headers.items() if not key.startswith("content-")}
        return ApiError(403, message, type="permission_error", code="origin_not_allowed", headers=headers).response()
