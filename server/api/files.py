"""``/v1/files``: what clients upload to train on or to run as a batch, and what jobs wrote for them."""

from __future__ import annotations

import asyncio
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from pydantic import Field
from starlette.responses import FileResponse, Response

from server.api.auth import FilesKey
from server.api.context import ContextDep, FilesDep
from server.api.error_responses import ApiError, json_response
from server.api.pages import page_body
from server.api.uploads import Form, UploadedFile, read_form
from server.api.wire_fields import Integer, Wire
from server.catalog.files import MADE_HERE, MAX_EXPIRY, MAX_FILENAME, MIN_EXPIRY, Purpose, file_data
from server.catalog.store import disk_errors

router = APIRouter()
FILES_PATH = "/v1/files"
MAX_FILES_PAGE = 10_000
UPLOADED = tuple(purpose.value for purpose in Purpose if purpose not in MADE_HERE)
Cursor = Annotated[str | None, Query(max_length=64)]


class ExpiryBody(Wire):
    """How long a file is kept."""

    anchor: Literal["created_at"]
    seconds: Annotated[Integer, Field(ge=MIN_EXPIRY, le=MAX_EXPIRY)]


@router.post(FILES_PATH, response_model=None)
async def create_file(caller: FilesKey, request: Request, context: ContextDep) -> Response:
    """Upload a file: a form with ``file`` and ``purpose``, and ``expires_after`` if it is not to stay."""
    store = context.lifecycle.store
    place = await asyncio.to_thread(store.new_quarantine)
    try:
        with disk_errors():
            form = await read_form(
                request, place, "send the file as multipart/form-data, with the fields file and purpose"
            )
        purpose, seconds = read_purpose(form.fields.get("purpose")), _expiry(form)
        file = only_file(form, "file")
        record = await context.files.add(
            file.path, owner=caller.owner, filename=shown_name(file.name), purpose=purpose, seconds=seconds
        )
    finally:
        await asyncio.to_thread(store.discard, place)
    return json_response(file_data(record))


@router.get(FILES_PATH, response_model=None)
async def list_files(
    caller: FilesKey,
    files: FilesDep,
    *,
    after: Cursor = None,
    limit: Annotated[int, Query(ge=0, le=MAX_FILES_PAGE)] = MAX_FILES_PAGE,
    order: Annotated[Literal["asc", "desc"], Query()] = "desc",
    purpose: Annotated[str | None, Query(max_length=32)] = None,
) -> Response:
    """The caller's files, newest first."""
    wanted = None if purpose is None else read_purpose(purpose, of_any=True)
    found = await files.find(caller.sees_owner, purpose=wanted, after=after, ascending=order == "asc", limit=limit + 1)
    return json_response(page_body([file_data(record) for record in found], limit))


@router.get("/v1/files/{file_id}", response_model=None)
async def retrieve_file(caller: FilesKey, files: FilesDep, file_id: str) -> Response:
    """What is known of one file."""
    return json_response(file_data(await files.get(file_id, caller.sees_owner)))


@router.delete("/v1/files/{file_id}", response_model=None)
async def delete_file(caller: FilesKey, files: FilesDep, file_id: str) -> Response:
    """Delete a file. Jobs that run have read theirs."""
    record = await files.get(file_id, caller.sees_owner)
    await files.delete(record)
    return json_response({"id": record.id, "object": "file", "deleted": True})


@router.get("/v1/files/{file_id}/content", response_model=None)
async def file_content(caller: FilesKey, files: FilesDep, file_id: str) -> Response:
    """The content of a file, as it was uploaded."""
    record = await files.get(file_id, caller.sees_owner)
    path = await files.path(record)
    headers = {"content-security-policy": "sandbox", "x-content-type-options": "nosniff"}
    return FileResponse(path, filename=record.filename, media_type="application/octet-stream", headers=headers)


def read_purpose(text: str | None, *, of_any: bool = False) -> Purpose:
    """What ``text`` means. Raises ApiError for what clients may not upload, or with ``of_any``, for what is none."""
    known = tuple(purpose.value for purpose in Purpose) if of_any else UPLOADED
    if text in known:
        return Purpose(text)
    said = "is missing; it must be" if text is None else "must be"
    raise ApiError(400, f"purpose: {said} {', '.join(known[:-1])} or {known[-1]}", param="purpose")


def _expiry(form: Form) -> float | None:
    """The seconds that the file is to be kept."""
    given = {
        name: form.fields[f"expires_after[{name}]"]
        for name in ("anchor", "seconds")
        if f"expires_after[{name}]" in form.fields
    }
    if not given:
        return None
    if given.get("anchor", "created_at") != "created_at":
        raise ApiError(400, "expires_after.anchor: must be created_at", param="expires_after.anchor")
    try:
        seconds = int(given.get("seconds", ""))
    except ValueError:
        seconds = 0
    if not MIN_EXPIRY <= seconds <= MAX_EXPIRY:
        raise ApiError(
            400, f"expires_after.seconds: must be {MIN_EXPIRY} to {MAX_EXPIRY}", param="expires_after.seconds"
        )
    return float(seconds)


def only_file(form: Form, field: str) -> UploadedFile:
    """The one file that a form is to have, in ``field``. Raises ApiError."""
    if len(form.files) != 1:
        said = f"the form holds no file; send it in the field {field}" if not form.files else "send one file at a time"
        raise ApiError(400, f"{field}: {said}", param=field)
    return form.files[0]


def shown_name(name: str) -> str:
    """What a client calls a file, as it can be shown."""
    return "".join(c for c in name if c.isprintable())[:MAX_FILENAME] or "file"
