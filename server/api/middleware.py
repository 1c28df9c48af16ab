"""What happens to every request: an id, one log line, an answer. Plain ASGI, so that streams pass untouched."""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

from starlette.datastructures import Headers, MutableHeaders
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.body_limits import route_path
from server.api.error_responses import INTERNAL_ERROR, to_api_error
from server.api.origins import check_host
from server.api.routing import METHODS

log = logging.getLogger("server.requests")

VERSIONED = "/v1/"
REQUEST_ID = "x-request-id"
_SOUND_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
MAX_PATH = 500  # characters of a path that the log repeats
OTHER = "other"
_METHODS = (*METHODS, "HEAD", "OPTIONS")
Answered = Callable[[str, str, int], None]
_QUIET = ("/health", "/ready", "/metrics")


@dataclass
class RequestRecord:
    """What the line of one request will say; routes add ``facts``, and the ``failure`` that is nobody's mistake."""

    id: str
    started: float = field(default_factory=time.perf_counter)
    status: int = 0
    facts: dict[str, object] = field(default_factory=dict)
    failure: Exception | None = None

    def note_error(self, error: Exception) -> None:
        """An error was answered in a stream that has begun, or instead of any other answer."""
        code = to_api_error(error).code
        self.facts["error"] = code
        if code == INTERNAL_ERROR:
            self.failure = error

    def write(self, scope: Scope) -> None:
        """Log the request; that is one line, with the traceback where this server is at fault."""
        path = scope["path"][:MAX_PATH]
        quiet = route_path(scope) in _QUIET
        level = logging.ERROR if self.failure else logging.DEBUG if quiet else logging.INFO
        entry = {
            "request_id": self.id,
            "method": scope["method"],
            "path": path,
            "status": self.status,
            "seconds": round(time.perf_counter() - self.started, 4),
            **self.facts,
        }
        extra = {"fields": entry}
        log.log(level, "%s %s %d", scope["method"], path, self.status, exc_info=self.failure, extra=extra)


def sound_id(given: str) -> str:
    """The id of a request: the client's own where it is sound."""
    return given if _SOUND_ID.fullmatch(given) else uuid.uuid4().hex


class RequestLog:
    """Gives each request an id, answers the errors that nobody else has, and logs it when it has ended."""

    def __init__(self, app: ASGIApp, answered: Answered) -> None:
        """``answered`` is told the method, the route (OTHER: none) and the status of each request."""
        self._app = app
        self._answered = answered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        record = RequestRecord(sound_id(headers.get(REQUEST_ID, "")))
        scope.setdefault("state", {}).update(request_id=record.id, record=record)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID] = record.id
            await send(message)

        try:
            check_host(headers)
            await self._app(scope, receive, send_with_id)
        except Exception as error:  # noqa: BLE001 - logged below; the server closes what has begun and does not end
            record.note_error(error)
            if not record.status:
                await to_api_error(error).response()(scope, receive, send_with_id)
        finally:
            record.write(scope)
            method, route = scope["method"], scope.get("route")
            path = route.path if isinstance(route, Route) else OTHER
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
