"""The verbs of canaries: promote, abort, and the scores that rules may look at. They begin and grow by PATCH."""

from __future__ import annotations

from typing import Annotated, TypeVar

from fastapi import APIRouter, Depends, Request
from pydantic import Field
from starlette.responses import Response

from server.api.admin import activated, adapter_body
from server.api.audit import audit, refusals_audited
from server.api.auth import AdminKey
from server.api.body import json_body
from server.api.context import ContextDep
from server.api.error_responses import json_response
from server.api.preconditions import GuardDep, etag_of
from server.api.traffic_body import Number, ScoresBody
from server.api.wire_fields import Integer, Wire

router = APIRouter()
Given = TypeVar("Given", bound=Wire)


class PromoteBody(Wire):
    """``POST /v1/adapters/{name}/promote``; all optional. ``version``: which canary, if there are several."""

    version: Number | None = None
    expected_live: Integer | None = Field(None, ge=0)


class AbortBody(Wire):
    """``POST /v1/adapters/{name}/abort``; all optional. ``version``: which canary or shadow, else all."""

    version: Number | None = None
    reason: str = Field("", max_length=500)
    expected_live: Integer | None = Field(None, ge=0)


@router.post("/v1/adapters/{name}/promote", response_model=None)
async def promote(_: AdminKey, request: Request, context: ContextDep, guard: GuardDep, name: str) -> Response:
    """Let a name serve its canary: the same flip as an activation."""
    body = await _optional(PromoteBody, request)
    guard.expected_live = body.expected_live
    with refusals_audited(request, name, version=body.version):
        activation = await context.traffic.promote(name, body.version, guard=guard)
    return activated(request, context.registry, activation, "promote", guard)


@router.post("/v1/adapters/{name}/abort", response_model=None)
async def abort(_: AdminKey, request: Request, context: ContextDep, guard: GuardDep, name: str) -> Response:
    """End canary and shadow: the live version answers alone."""
    body = await _optional(AbortBody, request)
    guard.expected_live = body.expected_live
    with refusals_audited(request, name, version=body.version):
        ended = await context.traffic.abort(name, body.version, reason=body.reason, guard=guard)
    audit(request, "abort" if ended else "unchanged", name, ended=ended, reason=body.reason or None)
    return json_response(
        {**adapter_body(context, name), "ended": ended, "changed": bool(ended)}, headers=etag_of(guard.after)
    )


@router.post("/v1/adapters/{name}/scores", response_model=None)
async def score(
    _: AdminKey,
    request: Request,
    context: ContextDep,
    guard: GuardDep,
    name: str,
    body: Annotated[ScoresBody, Depends(json_body(ScoresBody))],
) -> Response:
    """Note what an evaluator has measured of a version."""
    with refusals_audited(request, name, version=body.version):
        key = await context.traffic.score(name, body.version, body.scores, guard=guard)
    audit(request, "score", name, version=key.version, scores=body.scores)
    scores = context.registry.traffic(name).scores_of(key.version)
    found = {"object": "adapter.scores", "id": str(key), "name": name, "version": key.version, "scores": scores}
    return json_response(found, headers=etag_of(guard.after))


async def _optional(model: type[Given], request: Request) -> Given:
    """The body, or what an empty one means."""
    return await json_body(model)(request) if (await request.body()).strip() else model.model_validate({})
