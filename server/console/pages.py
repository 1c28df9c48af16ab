"""``/console``: the files of the console, which hold nothing secret and stand in ``static`` as they are served.

What they show they ask of the API with the key of whoever looks. A browser loads nothing for them from elsewhere, runs
no script but theirs, and lets them write no markup: the policy below says so.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from server.api.auth import Open
from server.api.error_responses import MAX_SHOWN, ApiError

CONSOLE_PATH = "/console"
STATIC = Path(__file__).parent / "static"
INDEX = "index.html"
POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "object-src 'none'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-cache",  # asked for again each time, and answered by 304: a new server has new pages
}
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True)
class StaticFile:
    """One file, as it is sent; ``etag`` names its content."""

    content: bytes
    media_type: str
    etag: str


@cache
def static_files() -> Mapping[str, StaticFile]:
    """All files by their path below /console/, read once: they are few and small."""
    found = {}
    for path in sorted(STATIC.rglob("*")):
        if path.suffix in _TYPES:
            content = path.read_bytes()
            etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
            found[path.relative_to(STATIC).as_posix()] = StaticFile(content, _TYPES[path.suffix], etag)
    return found


@router.get(CONSOLE_PATH, response_model=None)
async def index(_: Open, request: Request) -> Response:
    """The page itself. Its addresses are relative, so that it works below any prefix of a proxy's."""
    if request.scope.get("raw_path", b"").endswith(b"/"):
        return RedirectResponse("../console", 308)
    return _sent(request, static_files()[INDEX])


@router.get(CONSOLE_PATH + "/{path:path}", response_model=None)
async def file(_: Open, request: Request, path: str) -> Response:
    """A file of the page."""
    found = static_files().get(path)
    if found is None:
        raise ApiError(404, f"the console has no file {path[:MAX_SHOWN]}", code="not_found")
    return _sent(request, found)


def _sent(request: Request, file: StaticFile) -> Response:
    headers = {**HEADERS, "etag": file.etag}
    if file.etag in (tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")):
        return Response(status_code=304, headers=headers)
    return Response(file.content, headers=headers, media_type=file.media_type)
