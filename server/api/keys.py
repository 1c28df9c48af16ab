"""API keys over HTTP: created, looked at, changed, rotated and revoked while the server runs. All take an admin key.

What a key may see is decided in ``server.api.auth``. A secret is in the answer that makes it, and nowhere else.
"""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from pydantic import AfterValidator, ConfigDict, Field
from starlette.responses import Response

from server.api.audit import audit, refusals_audited
from server.api.auth import AdminKey
from server.api.body import json_body
from server.api.context import KeysDep
from server.api.error_responses import json_response
from server.api.moments import Moment
from server.api.wire_fields import Integer, Texts, Wire
from server.catalog.key_manager import KeyManager
from server.catalog.keys import KeyRecord, Scope, check_label, check_patterns, key_data, new_key
from server.errors import InvalidRequestError
from server.limits import Limits

MAX_GRACE_SECONDS = 30 * 86400.0

router = APIRouter()
State = Annotated[Literal["active", "expired", "revoked"] | None, Query()]
Label = Annotated[str, AfterValidator(check_label)]
Patterns = Annotated[Texts, AfterValidator(lambda patterns: list(check_patterns(patterns)))]
Scopes = Annotated[list[Scope], Field(min_length=1, max_length=len(Scope))]
Most = Annotated[Integer, Field(ge=1)]


class _Strict(Wire):
    """A field that nobody knows is refused: it may have been meant to hold a key back from something."""

    model_config = ConfigDict(extra="forbid")


class LimitsBody(_Strict):
    """What a key may take of the server; null: the server's default."""

    requests_per_minute: Most | None = None
    tokens_per_minute: Most | None = None
    max_concurrency: Most | None = None
    max_queue: Annotated[Integer, Field(ge=0)] | None = None


class NewKeyBody(_Strict):
    """``POST /v1/keys``. ``adapters``: null is all."""

    name: Label
    scopes: Scopes = Field(default_factory=lambda: [Scope.INFERENCE])
    adapters: Patterns | None = None
    base: bool = True
    limits: LimitsBody | None = None
    expires: Moment | None = None


class KeyChangeBody(_Strict):
    """``PATCH /v1/keys/{id}``: only what is given changes. Null: all adapters, default limits, no end."""

    name: Label | None = None
    scopes: Scopes | None = None
    adapters: Patterns | None = None
    base: bool | None = None
    limits: LimitsBody | None = None
    expires: Moment | None = None


class RotationBody(_Strict):
    """``POST /v1/keys/{id}/rotate``."""

    grace_seconds: float = Field(0.0, ge=0, le=MAX_GRACE_SECONDS)


def key_body(keys: KeyManager, record: KeyRecord, secret: str | None = None) -> dict[str, Any]:
    """What is told of a key; with its ``secret`` just after that was made."""
    return key_data(record, keys.last_used(record.id), time.time(), secret)


@router.post("/v1/keys", response_model=None)
async def create(
    _: AdminKey, request: Request, keys: KeysDep, body: Annotated[NewKeyBody, Depends(json_body(NewKeyBody))]
) -> Response:
    """Make a key. The answer's ``key`` is the only place where it ever stands."""
    with refusals_audited(request, None, "key.create", label=body.name):
        record, secret = new_key(
            body.name,
            body.scopes,
            now=time.time(),
            adapters=body.adapters,
            base=body.base,
            limits=Limits(**body.limits.model_dump()) if body.limits is not None else None,
            expires=body.expires,
        )
        await keys.create(record)
    audit(request, "key.create", record.id, label=record.name)
    return _told_once(key_body(keys, record, secret), 201)


@router.get("/v1/keys", response_model=None)
async def list_keys(_: AdminKey, keys: KeysDep, state: State = None) -> Response:
    """All keys, oldest first; those that expired or were revoked are kept."""
    await keys.reload()
    data = [key_body(keys, record) for record in keys.ring.all()]
    return json_response({"object": "list", "data": [body for body in data if state in (None, body["state"])]})


@router.get("/v1/keys/{id}", response_model=None)
async def inspect(_: AdminKey, keys: KeysDep, id: str) -> Response:
    """One key."""
    await keys.reload()
    return json_response(key_body(keys, keys.get(id)))


@router.patch("/v1/keys/{id}", response_model=None)
async def change(
    _: AdminKey,
    request: Request,
    keys: KeysDep,
    id: str,
    body: Annotated[KeyChangeBody, Depends(json_body(KeyChangeBody))],
) -> Response:
    """Change what a key may do, at once; requests that run go on."""
    with refusals_audited(request, id, "key.update"):
        record = await keys.update(id, _changes(body))
    audit(request, "key.update", id, label=record.name)
    return json_response(key_body(keys, record))


def _changes(body: KeyChangeBody) -> dict[str, Any]:
    """The fields that ``body`` sets. Raises InvalidRequestError."""
    fields = body.model_dump(exclude_unset=True)
    if not fields:
        raise InvalidRequestError(f"say what to change: {', '.join(KeyChangeBody.model_fields)}")
    for name in ("name", "scopes", "base"):
        if name in fields and fields[name] is None:
            raise InvalidRequestError(f"{name}: must not be null", param=name)
    return fields


@router.post("/v1/keys/{id}/rotate", response_model=None)
async def rotate(_: AdminKey, request: Request, keys: KeysDep, id: str) -> Response:
    """Give a key a new secret. The old one ends at once, or ``grace_seconds`` of an optional body later."""
    raw = await request.body()
    body = await json_body(RotationBody)(request) if raw.strip() else RotationBody.model_validate({})
    with refusals_audited(request, id, "key.rotate"):
        record, secret = await keys.rotate(id, body.grace_seconds)
    audit(request, "key.rotate", id, label=record.name, grace_seconds=body.grace_seconds)
    return _told_once(key_body(keys, record, secret), 200)


@router.delete("/v1/keys/{id}", response_model=None)
async def revoke(_: AdminKey, request: Request, keys: KeysDep, id: str, forget: bool = False) -> Response:
    """End a key at once; requests that run go on. Its record stays, unless ``forget``: that of a revoked key goes."""
    if forget:
        with refusals_audited(request, id, "key.forget"):
            await keys.forget(id)
        audit(request, "key.forget", id)
        return json_response({"object": "key.deleted", "id": id, "deleted": True})
    with refusals_audited(request, id, "key.revoke"):
        record = await keys.revoke(id)
    audit(request, "key.revoke", id, label=record.name)
    return json_response(key_body(keys, record))


def _told_once(body: dict[str, Any], status: int) -> Response:
    return json_response(body, status, {"cache-control": "no-store"})
