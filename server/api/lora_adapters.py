"""vLLM's calls for adapters that come and go, in its words where there are any."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from pydantic import Field
from starlette.responses import PlainTextResponse, Response

from server.api.audit import audit, refusals_audited
from server.api.auth import AdminKey
from server.api.body import json_body
from server.api.context import ContextDep, LifecycleDep
from server.api.error_responses import ApiError
from server.api.wire_fields import Wire
from server.catalog.sources import SourceError, shown
from server.errors import ConflictError, EngineUnavailableError, UnknownModelError

router = APIRouter()


class LoadBody(Wire):
    """``POST /v1/load_lora_adapter``. ``load_inplace``: also under a name that is served."""

    lora_name: str = Field("", max_length=512)
    lora_path: str = Field("", max_length=4096)
    load_inplace: bool = False


class UnloadBody(Wire):
    """``POST /v1/unload_lora_adapter``."""

    lora_name: str = Field("", max_length=512)


@router.post("/v1/load_lora_adapter", response_model=None)
async def load(
    _: AdminKey, request: Request, context: ContextDep, body: Annotated[LoadBody, Depends(json_body(LoadBody))]
) -> Response:
    """Serve the package at a path below --adapter-root."""
    if context.admission.closed_because:
        raise EngineUnavailableError(context.admission.closed_because)
    name, served = body.lora_name, context.registry.live_number(body.lora_name) is not None
    with refusals_audited(request, name or None, source=shown(body.lora_path)):
        if not name or not body.lora_path:
            raise ApiError(400, "Both 'lora_name' and 'lora_path' must be provided.")
        if name == context.base_name:
            raise ApiError(400, f"The lora adapter '{name}' conflicts with a served base model.", param="lora_name")
        context.registry.check_new_name(name)
        if served and not body.load_inplace:
            raise _loaded(name)
        try:
            async with context.sources.fetch(body.lora_path, path_only=True) as package:
                done = await context.lifecycle.upload(name, package, replace=body.load_inplace)
        except SourceError as error:
            status = 404 if error.code == "source_not_found" else 400
            raise ApiError(status, str(error), param="lora_path", code=error.code) from error
        except ConflictError as error:
            raise (_loaded(name) if error.code == "adapter_exists" else error) from error
    key = done.version.key
    audit(request, done.action, name, version=key.version, digest=key.digest, source=shown(body.lora_path))
    return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")


@router.post("/v1/unload_lora_adapter", response_model=None)
async def unload(
    _: AdminKey, request: Request, lifecycle: LifecycleDep, body: Annotated[UnloadBody, Depends(json_body(UnloadBody))]
) -> Response:
    """Stop serving a name; running requests finish."""
    name = body.lora_name
    with refusals_audited(request, name or None):
        if not name:
            raise ApiError(400, "'lora_name' needs to be provided to unload a LoRA adapter.", param="lora_name")
        try:
            versions = await lifecycle.remove(name)
        except UnknownModelError as error:
            raise ApiError(
                404, f"The lora adapter '{name}' cannot be found.", param="lora_name", code="model_not_found"
            ) from error
    audit(request, "remove", name, mode="drain", versions=[version.key.version for version in versions])
    return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")


def _loaded(name: str) -> ApiError:
    return ApiError(
        400,
        f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in place, set "
        "'load_inplace' to True.",
        param="lora_name",
        code="adapter_exists",
    )
