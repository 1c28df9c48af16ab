"""``/v1/models``: the base, and every adapter with its root and parent."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from server.adapter_key import AdapterKey, version_number
from server.api.admin import Mode
from server.api.anthropic_messages.errors import is_anthropics
from server.api.audit import audit, refusals_audited, refused_caller
from server.api.auth import MakerKey, ModelsKey, forbidden
from server.api.context import ContextDep, ServerContext
from server.api.error_responses import ApiError, json_response

router = APIRouter()
OWNER = "hotswap"


@router.get("/v1/models", response_model=None)
async def list_models(caller: ModelsKey, request: Request, context: ContextDep) -> Response:
    """Everything a request may name as its model."""
    names = filter(caller.sees, context.registry.names())
    data = [
        *([_base(context)] if caller.sees_base else ()),
        *(_adapter(context, name, context.registry.live(name).key) for name in names),
    ]
    if is_anthropics(request.scope):
        ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {"first_id": None, "last_id": None}
        return json_response({"object": "list", "data": list(map(_anthropics, data)), "has_more": False, **ends})
    return json_response({"object": "list", "data": data})


@router.get("/v1/models/{model:path}", response_model=None)
async def retrieve_model(caller: ModelsKey, request: Request, context: ContextDep, model: str) -> Response:
    """One model, by any name a request may use."""
    caller.check_model(context.registry, model)
    key = context.registry.resolve(model)
    body = _base(context) if key is None else _adapter(context, model, key)
    body = {**body, "id": model}
    return json_response(_anthropics(body) if is_anthropics(request.scope) else body)


@router.delete("/v1/models/{model:path}", response_model=None)
async def delete_model(
    caller: MakerKey, request: Request, context: ContextDep, model: str, mode: Mode = "drain"
) -> Response:
    """Stop serving an adapter, or, as NAME@VERSION, delete a version of it that is not live.

    An admin key may, and the key whose fine-tuning job made it.
    """
    if not caller.grants() and not await context.fine_tuning.made(model, caller.owner):
        raise refused_caller(
            request, context, caller.name, forbidden("this key may not delete a model it did not make")
        )
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


def _anthropics(model: dict[str, Any]) -> dict[str, Any]:
    """A model as clients of Anthropic's API read it, too."""
    created = datetime.fromtimestamp(model["created"], UTC).isoformat().replace("+00:00", "Z")
    return {**model, "type": "model", "display_name": model["id"], "created_at": created, "lifecycle": "active"}


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


def _adapter(context: ServerContext, name: str, key: AdapterKey) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": int(max(context.registry.leased(version).created for version in key.versions)),
        "owned_by": OWNER,
        "root": str(key),
        "parent": context.base_name,
    }
