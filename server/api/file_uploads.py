"""``/v1/uploads``: files that come in parts, for those too large, or connections too bad, for one request."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from pydantic import AfterValidator, Field
from starlette.responses import Response

from server.api.auth import FilesKey
from server.api.body import json_body
from server.api.context import ContextDep, UploadsDep
from server.api.error_responses import json_response
from server.api.files import ExpiryBody, only_file, read_purpose, shown_name
from server.api.uploads import read_form
from server.api.wire_fields import Integer, Wire
from server.catalog.files import MAX_FILENAME
from server.catalog.store import AdapterStore, disk_errors
from server.catalog.uploads import MAX_UPLOAD_PARTS, part_data, upload_data

router = APIRouter()
UPLOADS_PATH = "/v1/uploads"
PARTS_PATH = re.compile(r"/v1/uploads/[^/]+/parts/?")
_MD5 = re.compile(r"[0-9a-fA-F]{32}")


def check_md5(text: str) -> str:
    """An MD5 digest. Raises ValueError."""
    if not _MD5.fullmatch(text):
        raise ValueError("must be the MD5 digest of the whole file, in 32 hexadecimal digits")
    return text


class UploadBody(Wire):
    """``POST /v1/uploads``."""

    bytes: Annotated[Integer, Field(ge=1)]
    filename: str = Field(min_length=1, max_length=MAX_FILENAME)
    mime_type: str = Field(max_length=255)
    purpose: str = Field(max_length=32)
    expires_after: ExpiryBody | None = None


class CompleteBody(Wire):
    """``POST /v1/uploads/{upload_id}/complete``."""

    part_ids: list[Annotated[str, Field(max_length=64)]] = Field(min_length=1, max_length=MAX_UPLOAD_PARTS)
    md5: Annotated[str, AfterValidator(check_md5)] | None = None


@router.post(UPLOADS_PATH, response_model=None)
async def create_upload(
    caller: FilesKey, uploads: UploadsDep, body: Annotated[UploadBody, Depends(json_body(UploadBody))]
) -> Response:
    """Begin a file that comes in parts, in any order and at once if need be, within an hour."""
    record = await uploads.create(
        owner=caller.owner,
        filename=shown_name(body.filename),
        purpose=read_purpose(body.purpose),
        nbytes=body.bytes,
        seconds=float(body.expires_after.seconds) if body.expires_after else None,
    )
    return json_response(upload_data(record, record.created))


@router.post("/v1/uploads/{upload_id}/parts", response_model=None)
async def add_upload_part(caller: FilesKey, request: Request, context: ContextDep, upload_id: str) -> Response:
    """Add a part: a form with ``data``, of at most 64 MiB."""
    upload = await context.uploads.pending(upload_id, caller.sees_owner)
    async with _place(context.lifecycle.store) as place:
        with disk_errors():
            form = await read_form(request, place, "send the part as multipart/form-data, in the field data")
        part = await context.uploads.add(upload, only_file(form, "data").path)
    return json_response(part_data(part))


@router.post("/v1/uploads/{upload_id}/complete", response_model=None)
async def complete_upload(
    caller: FilesKey,
    context: ContextDep,
    upload_id: str,
    body: Annotated[CompleteBody, Depends(json_body(CompleteBody))],
) -> Response:
    """Put the parts together, in the order of ``part_ids``; what they make up is a file as any other."""
    upload = await context.uploads.pending(upload_id, caller.sees_owner)
    async with _place(context.lifecycle.store) as place:
        record, file = await context.uploads.complete(upload, body.part_ids, body.md5, place / "joined")
    return json_response(upload_data(record, time.time(), file))


@router.post("/v1/uploads/{upload_id}/cancel", response_model=None)
async def cancel_upload(caller: FilesKey, uploads: UploadsDep, upload_id: str) -> Response:
    """Delete the parts of an upload, which takes no more."""
    record = await uploads.cancel(await uploads.pending(upload_id, caller.sees_owner))
    return json_response(upload_data(record, time.time()))


@asynccontextmanager
async def _place(store: AdapterStore) -> AsyncIterator[Path]:
    """A folder of which nothing stays."""
    place = await asyncio.to_thread(store.new_quarantine)
    try:
        yield place
    finally:
        await asyncio.to_thread(store.discard, place)
