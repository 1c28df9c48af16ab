"""What happens to every request: an id, one log line, an answer. Plain ASGI, so that streams pass untouched."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Collection, Iterable

from starlette.datastructures import Headers, MutableHeaders
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.body_limits import route_path
from server.api.error_responses import to_api_error
from server.api.origins import check_host
from server.api.request_record import RequestRecord
from server.api.routing import METHODS
from server.traces import TRACEPARENT, Traces, collecting

VERSIONED = "/v1/"
REQUEST_ID = "x-request-id"
_SOUND_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
OTHER = "other"
_METHODS = (*METHODS, "HEAD", "OPTIONS")
Answered = Callable[[str, str, int], None]


def sound_id(given: str) -> str:
    """The id of a request: the client's own where it is sound."""
    return given if _SOUND_ID.fullmatch(given) else uuid.uuid4().hex


class RequestLog:
    """Gives each request an id, answers the errors that nobody else has, and logs it when it has ended."""

    def __init__(self, app: ASGIApp, answered: Answered, traces: Traces) -> None:
        """``answered`` is told the method, the route (OTHER: none) and the status of each request."""
        self._app = app
        self._answered = answered
        self._traces = traces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        record = RequestRecord(sound_id(headers.get(REQUEST_ID, "")), self._traces.begin(headers))
        scope.setdefault("state", {}).update(request_id=record.id, record=record)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                answer = MutableHeaders(scope=message)
                answer[REQUEST_ID] = record.id
                if record.trace.header:
                    answer[TRACEPARENT] = record.trace.header
            await send(message)

        try:
            check_host(headers)
            with collecting(record.trace.is_recording) as record.parts:
                await self._app(scope, receive, send_with_id)
        except Exception as error:  # noqa: BLE001 - logged below; the server closes what has begun and does not end
            record.note_error(error)
            if not record.status:
                await to_api_error(error).response()(scope, receive, send_with_id)
        finally:
            method, route = scope["method"], scope.get("route")
            path = route.path if isinstance(route, Route) else OTHER
            record.end(scope, path)
            self._answered(method if method in _METHODS else OTHER, path, record.status)


class RootPath:
    """Serves below a prefix as well, whether or not the proxy takes it off the path."""

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self._app = app
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        await self._app({**scope, "root_path": self._root_path}, receive, send)


def unversioned(routes: Iterable[BaseRoute]) -> frozenset[str]:
    """The first words behind /v1/ that are no paths of their own: what is below them is served without /v1 too."""
    paths = [route.path for route in routes if isinstance(route, Route)]
    own = {path.split("/")[1] for path in paths if not path.startswith(VERSIONED)}
    return frozenset({path.removeprefix(VERSIONED).split("/")[0] for path in paths if path.startswith(VERSIONED)} - own)


class Unversioned:
    """A path that begins with one of ``words`` is the one below /v1, as clients ask whose address has no /v1."""

    def __init__(self, app: ASGIApp, words: Collection[str]) -> None:
        self._app = app
        self._words = words

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] == "http":
            path = route_path(scope)
            if path.lstrip("/").partition("/")[0] in self._words:
                scope = {**scope, "path": scope.get("root_path", "") + VERSIONED + path.lstrip("/")}
        await self._app(scope, receive, send)
