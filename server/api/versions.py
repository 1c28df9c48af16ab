"""The admin API of versions: a candidate or an older one goes live, and versions are deleted, while requests run."""

from __future__ import annotations

from typing import Annotated, ClassVar

from fastapi import APIRouter, Depends, Request
from pydantic import Field
from starlette.responses import Response

from server.api.adapter_bodies import audit, refusals_audited, version_body
from server.api.adapters import Mode
from server.api.auth import AdminKey
from server.api.bodies import json_body
from server.api.errors import ApiError, json_response
from server.api.parts import Parts, PartsDep
from server.api.requests import Wire
from server.flips import Flip

router = APIRouter()
Number = Annotated[int, Field(ge=1)]


class _Precondition(Wire):
    """What both changes share. ``expected_live``: change nothing unless this version is live (0: none)."""

    expected_live: int | None = Field(None, ge=0)


class ChangeBody(_Precondition):
    """``PATCH /v1/adapters/{name}``. Shares of traffic will be fields beside ``version``."""

    unsupported: ClassVar[dict[str, str]] = {
        "weights": "traffic goes to one version; give `version`",
        "canary": "traffic goes to one version; give `version`",
        "pin": "every live version and every candidate stays resident",
    }

    version: Number


class RollbackBody(_Precondition):
    """``POST /v1/adapters/{name}/rollback``."""

    version: Number | None = None


@router.patch("/v1/adapters/{name}", response_model=None)
async def change(
    _: AdminKey,
    request: Request,
    parts: PartsDep,
    name: str,
    body: Annotated[ChangeBody, Depends(json_body(ChangeBody))],
) -> Response:
    """Activate a version: a candidate, or one that was live before."""
    with refusals_audited(request, name, version=body.version):
        flip = await parts.lifecycle.activate(name, body.version, expected_live=body.expected_live)
    return _flipped(request, parts, flip, "activate")


@router.post("/v1/adapters/{name}/rollback", response_model=None)
async def rollback(_: AdminKey, request: Request, parts: PartsDep, name: str) -> Response:
    """Activate the version that was live before, or the one that an optional body names."""
    raw = await request.body()
    body = await json_body(RollbackBody)(request) if raw.strip() else RollbackBody.model_validate({})
    with refusals_audited(request, name, version=body.version):
        flip = await parts.lifecycle.rollback(name, body.version, expected_live=body.expected_live)
    return _flipped(request, parts, flip, "rollback")


@router.delete("/v1/adapters/{name}/versions/{version}", response_model=None)
async def delete_version(
    _: AdminKey, request: Request, parts: PartsDep, name: str, version: str, mode: Mode = "drain"
) -> Response:
    """Delete a version that is not live: a candidate, or one that nobody will go back to."""
    number = int(version) if version.isdecimal() and len(version) < 10 else 0
    with refusals_audited(request, name, version=number):
        if not number:
            raise ApiError(400, "version: must be a version's number, like 3", param="version")
        deleted = await parts.lifecycle.remove_version(name, number, force=mode == "force")
    audit(request, "remove_version", name, mode=mode, version=number, digest=deleted.key.digest)
    return json_response(
        {
            "object": "adapter.version.deleted",
            "id": str(deleted.key),
            "name": name,
            "version": number,
            "digest": deleted.key.digest,
            "deleted": True,
            "mode": mode,
        }
    )


def _flipped(request: Request, parts: Parts, flip: Flip, action: str) -> Response:
    """The version that is live now; ``replaced`` is the number of the one before it."""
    key, replaced = flip.version.key, flip.replaced.key.version if flip.replaced else None
    done = action if flip.changed else "unchanged"
    audit(request, done, key.name, version=key.version, digest=key.digest, replaced=replaced)
    body = {**version_body(parts, flip.version), "replaced": replaced, "changed": flip.changed}
    return json_response(body)
