"""JSON bodies to wire models: read whole (the size is limited before), parsed and checked in one pass."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect

from server.api.errors import ApiError
from server.api.requests import Wire

Body = TypeVar("Body", bound=Wire)


def json_body(model: type[Body]) -> Callable[[Request], Awaitable[Body]]:
    """A dependency that gives the body as ``model``; ValidationError becomes a 400."""

    async def parse(request: Request) -> Body:
        media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media.startswith("multipart/"):  # anything else may be JSON: `curl -d` calls it a form
            raise ApiError(415, f"send JSON here, not {media}", code="unsupported_media_type")
        try:
            return model.model_validate_json(await request.body())
        except ClientDisconnect as error:
            raise ApiError(400, "the body ended early") from error

    return parse
