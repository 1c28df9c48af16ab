"""``/v1/batches``: the requests of an uploaded file, answered behind all others."""

from __future__ import annotations

import time
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query, Request
from pydantic import Field
from starlette.responses import Response

from server.api.audit import audit, refusals_audited
from server.api.auth import InferenceKey
from server.api.body import json_body
from server.api.context import BatchesDep, ContextDep
from server.api.error_responses import ApiError, json_response
from server.api.files import Cursor, ExpiryBody
from server.api.pages import page_body
from server.api.wire_fields import Metadata, Wire
from server.batches.batch import WINDOW_SECONDS, Batch, batch_data
from server.catalog.files import Purpose
from server.errors import InvalidRequestError, NotFoundError

router = APIRouter()
Endpoint = Literal["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"]
Limit = Annotated[int, Query(ge=0, le=100)]


class BatchBody(Wire):
    """``POST /v1/batches``."""

    input_file_id: str = Field(min_length=1, max_length=64)
    endpoint: Endpoint
    completion_window: Literal["24h"]
    metadata: Metadata | None = None
    output_expires_after: ExpiryBody | None = None


@router.post("/v1/batches", response_model=None)
async def create_batch(
    caller: InferenceKey,
    request: Request,
    context: ContextDep,
    body: Annotated[BatchBody, Depends(json_body(BatchBody))],
) -> Response:
    """Answer the requests of a file; the answers come in a file, too."""
    with refusals_audited(request, None, "batch.create"):
        if not context.config.batch_concurrency:
            raise InvalidRequestError(
                "batches are off on this server; its operator can start it with --batch-concurrency 4",
                code="batches_disabled",
            )
        try:
            record = await context.files.get(body.input_file_id, caller.sees_owner)
        except NotFoundError as error:
            raise ApiError(400, f"input_file_id: {error}", param="input_file_id", code="file_not_found") from error
        if record.purpose is not Purpose.BATCH:
            said = f"the file {record.id} has the purpose {record.purpose.value}; upload it with the purpose batch"
            raise ApiError(400, f"input_file_id: {said}", param="input_file_id", code="invalid_purpose")
        batch = Batch(
            endpoint=body.endpoint,
            input_file=record.id,
            window=body.completion_window,
            expires=time.time() + WINDOW_SECONDS[body.completion_window],
            metadata=body.metadata,
            output_seconds=float(body.output_expires_after.seconds) if body.output_expires_after else None,
        )
        row = await context.batches.create(batch, caller.owner)
    audit(request, "batch.create", row.id)
    return json_response(batch_data(row))


@router.get("/v1/batches", response_model=None)
async def list_batches(
    caller: InferenceKey, batches: BatchesDep, *, after: Cursor = None, limit: Limit = 20
) -> Response:
    """The caller's batches, newest first."""
    found = await batches.find(caller.sees_owner, after=after, limit=limit + 1)
    return json_response(page_body([batch_data(row) for row in found], limit))


@router.get("/v1/batches/{batch_id}", response_model=None)
async def retrieve_batch(caller: InferenceKey, batches: BatchesDep, batch_id: str) -> Response:
    """One batch."""
    return json_response(batch_data(await batches.get(batch_id, caller.sees_owner)))


@router.post("/v1/batches/{batch_id}/cancel", response_model=None)
async def cancel_batch(caller: InferenceKey, request: Request, batches: BatchesDep, batch_id: str) -> Response:
    """Send no more requests of a batch; what has been answered is kept."""
    with refusals_audited(request, batch_id, "batch.cancel"):
        row = await batches.cancel(batch_id, caller.sees_owner)
    audit(request, "batch.cancel", batch_id)
    return json_response(batch_data(row))
