"""The admin API: adapters come, are replaced and go while requests run. Every change is an audit line."""

from __future__ import annotations

import asyncio
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from adapters.errors import AdapterError
from adapters.inspection import inspect_package
from server.api import uploads
from server.api.adapter_bodies import adapter_body, audit, version_body
from server.api.auth import AdminKey
from server.api.errors import ApiError, json_response
from server.api.parts import Parts, PartsDep
from server.errors import EngineUnavailableError, ServerError
from server.registry import AdapterKey, VersionState

router = APIRouter()
Mode = Annotated[Literal["drain", "force"], Query()]


@router.post("/v1/adapters", response_model=None)
async def upload(
    _: AdminKey,
    request: Request,
    parts: PartsDep,
    *,
    name: str | None = None,
    replace: bool = False,
    activate: bool = True,
    allow_noop: bool = False,
) -> Response:
    """Serve an uploaded package under a new name; with ``replace`` also under one that exists.

    With ``activate`` false it only becomes a candidate.
    """
    return await _upload(request, parts, name, replace=replace, activate=activate, allow_noop=allow_noop)


@router.put("/v1/adapters/{name}", response_model=None)
async def put(
    _: AdminKey, request: Request, parts: PartsDep, name: str, activate: bool = True, allow_noop: bool = False
) -> Response:
    """Serve an uploaded package under ``name``, as its next version if the name exists."""
    return await _upload(request, parts, name, replace=True, activate=activate, allow_noop=allow_noop)


@router.get("/v1/adapters", response_model=None)
async def list_adapters(_: AdminKey, parts: PartsDep) -> Response:
    """All adapters that are served or have a candidate."""
    data = [adapter_body(parts, name) for name in parts.registry.known_names()]
    return json_response({"object": "list", "data": data})


@router.get("/v1/adapters/{name}", response_model=None)
async def inspect(_: AdminKey, parts: PartsDep, name: str) -> Response:
    """One adapter, with its versions and what the trainer of the live one recorded."""
    body = adapter_body(parts, name)
    manifest = parts.registry.live(name).manifest if body["version"] is not None else None
    return json_response({**body, "manifest": manifest})


@router.delete("/v1/adapters/{name}", response_model=None)
async def delete(_: AdminKey, request: Request, parts: PartsDep, name: str, mode: Mode = "drain") -> Response:
    """Stop serving a name: running requests finish (drain) or are ended (force)."""
    versions = await parts.lifecycle.remove(name, force=mode == "force")
    audit(request, "remove", name, mode=mode, versions=[version.key.version for version in versions])
    return json_response({"object": "adapter.deleted", "name": name, "deleted": True, "mode": mode})


async def _upload(
    request: Request, parts: Parts, name: str | None, *, replace: bool, activate: bool, allow_noop: bool
) -> Response:
    if parts.admission.closed_because:
        raise EngineUnavailableError(parts.admission.closed_because)
    if name is not None:
        parts.registry.check_new_name(name)  # before the body is read
    try:
        async with uploads.receive(request, parts) as received:
            name = name or received.fields.get("name")
            if not name:
                raise ApiError(
                    400, "say what to call the adapter, in the field or query parameter `name`", param="name"
                )
            activate = activate and received.flag("activate", default=True)
            replace = received.flag("replace") or replace
            before = _states(parts, name)
            live = next((key for key, state in before.items() if state is VersionState.LIVE), None)
            if live is not None and activate and not replace:
                await _require_same_content(received, live)
            allow_noop = received.flag("allow_noop") or allow_noop
            version = await parts.lifecycle.install(name, received.package, activate=activate, allow_noop=allow_noop)
    except (AdapterError, ServerError, ApiError) as error:
        audit(request, "refuse", name, reason=str(error))
        raise
    changed = version.key not in before or (activate and version.key != live)
    action = "unchanged" if not changed else "candidate" if not activate else "replace" if live else "load"
    audit(request, action, name, version=version.key.version, digest=version.key.digest)
    body = {**version_body(parts, version), "base_fingerprint": parts.engine.info.base_fingerprint}
    return json_response(body, 201 if changed else 200)


async def _require_same_content(received: uploads.Upload, live: AdapterKey) -> None:
    """An upload that is repeated (after a lost answer, say) is no conflict; other content under the name is."""
    info = await asyncio.to_thread(inspect_package, received.package)
    if info.digest != live.digest:
        raise ApiError(
            409,
            f"the adapter {live.name!r} exists (version {live.version}); "
            f"to replace it, send PUT /v1/adapters/{live.name} or add ?replace=true; "
            "to upload a candidate beside it, add ?activate=false",
            param="name",
            code="adapter_exists",
            headers={"x-should-retry": "false"},
        )


def _states(parts: Parts, name: str) -> dict[AdapterKey, VersionState]:
    """The versions of a name, which may be new."""
    versions = parts.registry.versions(name) if name in parts.registry.known_names() else []
    return {version.key: parts.registry.state(version.key) for version in versions}
