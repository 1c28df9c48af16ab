"""The admin API: adapters come, are replaced and go while requests run. Every change is an audit line."""

from __future__ import annotations

import asyncio
import logging
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from adapters.errors import AdapterError
from adapters.inspection import inspect_package
from server.api import uploads
from server.api.auth import AdminKey
from server.api.errors import ApiError, json_response
from server.api.parts import Parts, PartsDep
from server.errors import EngineUnavailableError, ServerError
from server.registry import AdapterKey, AdapterVersion

router = APIRouter()
audit = logging.getLogger("server.audit")


@router.post("/v1/adapters", response_model=None)
async def upload(
    _: AdminKey,
    request: Request,
    parts: PartsDep,
    name: str | None = None,
    replace: bool = False,
    allow_noop: bool = False,
) -> Response:
    """Serve an uploaded package under a new name; with ``replace`` also under one that exists."""
    return await _upload(request, parts, name, replace=replace, allow_noop=allow_noop)


@router.put("/v1/adapters/{name}", response_model=None)
async def put(_: AdminKey, request: Request, parts: PartsDep, name: str, allow_noop: bool = False) -> Response:
    """Serve an uploaded package under ``name``, as its next version if the name exists."""
    return await _upload(request, parts, name, replace=True, allow_noop=allow_noop)


@router.get("/v1/adapters", response_model=None)
async def list_adapters(_: AdminKey, parts: PartsDep) -> Response:
    """All adapters that are served."""
    data = [_adapter_body(parts, name) for name in parts.registry.names()]
    return json_response({"object": "list", "data": data})


@router.get("/v1/adapters/{name}", response_model=None)
async def inspect(_: AdminKey, parts: PartsDep, name: str) -> Response:
    """One adapter, with its versions and what its trainer recorded."""
    manifest = parts.registry.live(name).manifest
    return json_response({**_adapter_body(parts, name), "manifest": manifest})


@router.delete("/v1/adapters/{name}", response_model=None)
async def delete(
    _: AdminKey,
    request: Request,
    parts: PartsDep,
    name: str,
    mode: Annotated[Literal["drain", "force"], Query()] = "drain",
) -> Response:
    """Stop serving a name: running requests finish (drain) or are ended (force)."""
    versions = await parts.lifecycle.remove(name, force=mode == "force")
    _audit(request, "remove", name, mode=mode, versions=[version.key.version for version in versions])
    return json_response({"object": "adapter.deleted", "name": name, "deleted": True, "mode": mode})


async def _upload(request: Request, parts: Parts, name: str | None, *, replace: bool, allow_noop: bool) -> Response:
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
            replace = replace or _is_set(received, "replace")
            before = _live(parts, name)
            if before is not None and not replace:
                await _require_same_content(received, before.key)
            allow_noop = allow_noop or _is_set(received, "allow_noop")
            version = await parts.lifecycle.install(name, received.package, allow_noop=allow_noop)
    except (AdapterError, ServerError, ApiError) as error:
        _audit(request, "refuse", name, reason=str(error))
        raise
    changed = before is None or before.key != version.key
    action = "load" if before is None else "replace" if changed else "unchanged"
    _audit(request, action, name, version=version.key.version, digest=version.key.digest)
    body = {**_version_body(parts, version), "base_fingerprint": parts.engine.info.base_fingerprint}
    return json_response(body, 201 if changed else 200)


async def _require_same_content(received: uploads.Upload, live: AdapterKey) -> None:
    """An upload that is repeated (after a lost answer, say) is no conflict; other content under the name is."""
    info = await asyncio.to_thread(inspect_package, received.package)
    if info.digest != live.digest:
        raise ApiError(
            409,
            f"the adapter {live.name!r} exists (version {live.version}); "
            f"to replace it, send PUT /v1/adapters/{live.name} or add ?replace=true",
            param="name",
            code="adapter_exists",
            headers={"x-should-retry": "false"},
        )


def _is_set(received: uploads.Upload, field: str) -> bool:
    return received.fields.get(field, "").lower() in ("1", "true", "yes")


def _live(parts: Parts, name: str) -> AdapterVersion | None:
    return parts.registry.live(name) if name in parts.registry.names() else None


def _adapter_body(parts: Parts, name: str) -> dict[str, Any]:
    versions = [_version_body(parts, version) for version in parts.registry.versions(name)]
    live = _version_body(parts, parts.registry.live(name))
    running = sum(version["running"] for version in versions)
    return {**live, "object": "adapter", "running": running, "versions": versions}


def _version_body(parts: Parts, version: AdapterVersion) -> dict[str, Any]:
    key = version.key
    return {
        "object": "adapter.version",
        "id": str(key),
        "name": key.name,
        "version": key.version,
        "digest": key.digest,
        "kind": version.kind,
        "bytes": version.nbytes,
        "num_virtual_tokens": version.num_virtual_tokens,
        "created": int(version.created),
        "state": parts.registry.state(key).value,
        "running": parts.admission.running(key),
        "warnings": list(version.warnings),
    }


def _audit(request: Request, action: str, name: str | None, **details: object) -> None:
    """One line per change, or refused change, of what is served."""
    client = request.client.host if request.client else None
    request_id = request.scope["state"]["request_id"]
    fields = {"action": action, "adapter": name, "client": client, "request_id": request_id, **details}
    audit.info("adapter %s: %s", name, action, extra={"fields": fields})
