"""``/v1/models``: the base, and every adapter with its root and parent."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from server.api.auth import InferenceKey
from server.api.context import ContextDep, ServerContext
from server.api.error_responses import json_response
from server.catalog.versions import AdapterVersion

router = APIRouter()
OWNER = "hotswap"


@router.get("/v1/models", response_model=None)
async def list_models(_: InferenceKey, parts: ContextDep) -> Response:
    """Everything a request may name as its model."""
    data = [_base(parts), *(_adapter(parts, name, parts.registry.live(name)) for name in parts.registry.names())]
    return json_response({"object": "list", "data": data})


@router.get("/v1/models/{model:path}", response_model=None)
async def retrieve_model(_: InferenceKey, parts: ContextDep, model: str) -> Response:
    """One model, by any name a request may use."""
    key = parts.registry.resolve(model)
    body = _base(parts) if key is None else _adapter(parts, key.name, parts.registry.leased(key))
    return json_response({**body, "id": model})


def _base(parts: ServerContext) -> dict[str, Any]:
    length = parts.engine.info.max_model_len if parts.engine.ready else None
    return {
        "id": parts.base_name,
        "object": "model",
        "created": parts.created,
        "owned_by": OWNER,
        "root": parts.base_root,
        "parent": None,
        "max_model_len": length,
    }


def _adapter(parts: ServerContext, name: str, version: AdapterVersion) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": int(version.created),
        "owned_by": OWNER,
        "root": str(version.key),
        "parent": parts.base_name,
    }
