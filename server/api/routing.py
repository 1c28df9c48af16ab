"""Which paths and methods reach a route. Knows no route."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Receive, Scope, Send

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")


class PlainPath:
    """A path with a slash behind it is the path itself, and HEAD is GET: the web server sends no body then."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request. Which ``route`` it was is told in ``scope`` as ever."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path, method = scope["path"].rstrip("/") or "/", scope["method"]
        plain = {**scope, "path": path, "method": "GET" if method == "HEAD" else method}
        try:
            await self._app(plain, receive, send)
        finally:
            scope["route"] = plain.get("route")


def methods_of(routes: Sequence[BaseRoute], scope: Scope) -> list[str]:
    """All methods that the path of ``scope`` takes, over all routes: each of ``routes`` answers for its own alone."""
    taken = [
        method
        for method in METHODS
        if any(route.matches({**scope, "method": method})[0] is Match.FULL for route in routes)
    ]
    return [*taken, "HEAD"] if "GET" in taken else taken
