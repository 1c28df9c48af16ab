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
