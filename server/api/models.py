"""``/v1/models``: the base, and every adapter with its root and parent."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from server.adapter_key import version_number
from server.api.admin import Mode, audit, refusals_audited
from server.api.auth import AdminKey, InferenceKey
from server.api.context import ContextDep, ServerContext
from server.api.error_responses import ApiError, json_response
from server.catalog.versions import AdapterVersion

router = APIRouter()
OWNER = "hotswap"


@router.get("/v1/models", response_model=None)
async def list_models(_: InferenceKey, context: ContextDep) -> Response:
    """Everything a request may name as its model."""
    data = [
        _base(context),
        *(_adapter(context, name, context.registry.live(name)) for name in context.registry.names()),
    ]
    return json_response({"object": "list", "data": data})


@router.get("/v1/models/{model:path}", response_model=None)
async def retrieve_model(_: InferenceKey, context: ContextDep, model: str) -> Response:
    """One model, by any name a request may use."""
    key = context.registry.resolve(model)
    body = _base(context) if key is None else _adapter(context, key.name, context.registry.leased(key))
    return json_response({**body, "id": model})


@router.delete("/v1/models/{model:path}", response_model=None)
async def delete_model(
    _: AdminKey, request: Request, context: ContextDep, model: str, mode: Mode = "drain"
) -> Response:
    """Stop serving an adapter, or, as NAME@VERSION, delete a version of it that is not live."""
    name, at, number = model.removeprefix(f"{context.base_name}:").partition("@")
    with refusals_audited(request, name):
        if model == context.base_name:
            raise ApiError(400, f"{model!r} is the base, which is always served", param="model", code="base_model")
        if at:
            version = context.registry.version(name, version_number(number) or 0)
            versions = [await context.lifecycle.remove_version(name, version.key.version, force=mode == "force")]
        else:
            versions = await context.lifecycle.remove(name, force=mode == "force")
    numbers = [version.key.version for version in versions]
    audit(request, "remove_version" if at else "remove", name, mode=mode, versions=numbers)
    return json_response({"id": model, "object": "model", "deleted": True})


def _base(context: ServerContext) -> dict[str, Any]:
    length = context.engine.info.max_model_len if context.engine.ready else None
    return {
        "id": context.base_name,
        "object": "model",
        "created": context.created,
        "owned_by": OWNER,
        "root": context.base_root,
        "parent": None,
        "max_model_len": length,
    }


def _adapter(context: ServerContext, name: str, version: AdapterVersion) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": int(version.created),
        "owned_by": OWNER,
        "root": str(version.key),
        "parent": context.base_name,
    }
