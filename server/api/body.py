"""The JSON body of a request: read whole (its bytes are limited before), measured, then parsed and checked.

Parsing and checking hold the event loop, and a few megabytes can hold millions of values. So bytes that are cheap to
count say first how much there is to parse, and large bodies take turns.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from fastapi import Request
from pydantic import TypeAdapter, ValidationError
from starlette.requests import ClientDisconnect

from server.api.context import ServerContext, get_context
from server.api.error_responses import ApiError
from server.api.wire_fields import Wire
from server.settings import ServerConfig
from server.text.tokenizer import count_characters

Body = TypeVar("Body", bound=Wire)
_ANYTHING = TypeAdapter[Any](Any)

LARGE_BODY = 64 * 1024  # bytes; below it parsing and checking take a few milliseconds at worst
SLICE = 64 * 1024  # bytes looked at before others have their turn: about a millisecond
FIELD_COST = 6  # a field, list or object costs about as much to parse and check as this many numbers


def json_body(model: type[Body]) -> Callable[[Request], Awaitable[Body]]:
    """A dependency that gives the body as ``model``; ValidationError becomes a 400."""

    async def read(request: Request) -> Body:
        check_media_type(request)
        try:
            raw = await request.body()
        except ClientDisconnect as error:
            raise ApiError(400, "the body ended early") from error
        return await parse_body(model, raw, await get_context(request))

    return read


def check_media_type(request: Request) -> None:
    """Raise ApiError (415) when the body is said to be anything but JSON.

    Pages of other sites may send forms, plain text and what has no type without being asked first. Programs that give
    no type are let through; browsers are known by the origin that they name.
    """
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media == "application/json" or (media.startswith("application/") and media.endswith("+json")):
        return
    if not media and "origin" not in request.headers:
        return
    sent = f", not {media[:64]}" if media else ""
    raise ApiError(
        415, f"send JSON here{sent}: set the header content-type: application/json", code="unsupported_media_type"
    )


async def parse_body(model: type[Body], raw: bytes, context: ServerContext) -> Body:
    """``raw`` as ``model``. Raises ApiError when it holds more than is allowed, ValidationError when it is wrong."""
    if len(raw) <= LARGE_BODY:
        return await _parse(model, raw, context.config)
    async with context.turns.take():
        return await _parse(model, raw, context.config)


async def _parse(model: type[Body], raw: bytes, config: ServerConfig) -> Body:
    await _check_values(raw, config.max_json_values)
    if raw.count(b"{") > config.max_messages or len(raw) > config.max_prompt_chars:
        _check_conversation(raw, config)
        await asyncio.sleep(0)
    return model.model_validate_json(raw)


# ---- how much there is to parse ----


async def _check_values(raw: bytes, limit: int) -> None:
    """Raise ApiError when ``raw`` holds more than ``limit`` values."""
    if _cost(raw) > limit and await count_values(raw) > limit:  # most texts hold fewer commas than that
        _check_beginning(raw[:LARGE_BODY])
        raise ApiError(
            400,
            f"the body holds more than {limit} values (a field, list or object counts as {FIELD_COST}), the limit of "
            "one request; send less at once, or start the server with a larger --max-json-values",
            code="body_too_complex",
        )


def _check_beginning(raw: bytes) -> None:
    """Raise ValidationError when what begins so is no JSON, or nested too deeply."""
    try:
        _ANYTHING.validate_json(raw)
    except ValidationError as error:
        if "EOF" not in error.errors(include_url=False, include_input=False)[0]["msg"]:
            raise


def _cost(text: bytes) -> int:
    """What the values of a JSON text cost, at most: what stands in its strings counts too."""
    return text.count(b",") + FIELD_COST * (text.count(b":") + text.count(b"[") + text.count(b"{"))


async def count_values(raw: bytes) -> int:
    """What the values of a JSON text cost, strings left out. Others have their turn meanwhile."""
    total, begin, inside = 0, 0, 0
    while begin < len(raw):
        piece = raw[begin : begin + SLICE]
        begin += len(piece)
        if (len(piece) - len(piece.rstrip(b"\\"))) % 2:  # do not cut an escape in two
            piece += raw[begin : begin + 1]
            begin += 1
        parts = piece.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')
        total += _cost(b"".join(parts[inside::2]))
        inside ^= (len(parts) - 1) % 2
        await asyncio.sleep(0)
    return total


# ---- how much a template would have to render ----


def _check_conversation(raw: bytes, config: ServerConfig) -> None:
    """Raise ApiError when a conversation has too many messages or, with all that its template is given, characters.

    Raises ValidationError for what is no JSON.
    """
    data = _ANYTHING.validate_json(raw)
    if not isinstance(data, dict):
        return
    field = "input" if "input" in data and "messages" not in data else "messages"
    messages = data.get(field)
    if isinstance(messages, list) and len(messages) > config.max_messages:
        raise ApiError(
            400,
            f"{field}: {len(messages)} messages; one request may have {config.max_messages} (--max-messages)",
            param=field,
            code="array_above_max_length",
        )
    data.pop("prompt", None)  # how long it may be is a matter of the base's context
    if (count := count_characters(data)) > config.max_prompt_chars:
        raise ApiError(
            400,
            f"{field}: with everything that goes to the chat template they hold {count} characters; one request may "
            f"hold {config.max_prompt_chars} (--max-prompt-chars)",
            param=field,
            code="string_above_max_length",
        )
