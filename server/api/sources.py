"""A package that is named instead of sent: JSON to a package directory in quarantine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Request
from pydantic import Field
from starlette.requests import ClientDisconnect

from server.api.body import check_media_type
from server.api.context import ServerContext
from server.api.error_responses import ApiError
from server.api.uploads import Upload
from server.api.wire_fields import Integer, Wire

MAX_BODY = 64 * 1024


class SourceBody(Wire):
    """``POST`` and ``PUT`` of an adapter that is to be fetched; ``name`` may stand in the address instead."""

    name: str | None = Field(None, max_length=512)
    source: str = Field(min_length=1, max_length=4096)
    digest: str | None = Field(None, max_length=128)
    revision: str | None = Field(None, max_length=256)
    activate: bool | None = None
    replace: bool | None = None
    allow_noop: bool | None = None
    expected_live: Integer | None = Field(None, ge=0)

    def fields(self) -> dict[str, str]:
        """What an upload's form would say."""
        flags = {"activate": self.activate, "replace": self.replace, "allow_noop": self.allow_noop}
        said = {name: str(flag).lower() for name, flag in flags.items() if flag is not None}
        said |= {} if self.expected_live is None else {"expected_live": str(self.expected_live)}
        return {"name": self.name, **said} if self.name else said


def is_json(request: Request) -> bool:
    """Whether the body is JSON, as far as its type says."""
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    return media == "application/json" or media.endswith("+json")


@asynccontextmanager
async def receive(request: Request, context: ServerContext) -> AsyncIterator[Upload]:
    """Fetch what the body names into quarantine; nothing of it stays. Raises as ``Sources.fetch``, and ApiError."""
    check_media_type(request)
    body = SourceBody.model_validate_json(await _read(request))
    async with context.sources.fetch(body.source, digest=body.digest, revision=body.revision) as package:
        yield Upload(package, body.fields(), body.source)


async def _read(request: Request) -> bytes:
    """The body, which this path would let be as large as an upload."""
    body = b""
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BODY:
                raise ApiError(413, f"the body is larger than {MAX_BODY} bytes", code="body_too_large")
    except ClientDisconnect as error:
        raise ApiError(400, "the body ended early") from error
    return body
