"""Chat completions that are kept where a request says `store`, and what is told of them later."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response
from typing_extensions import override

from server.api.answer_form import AnswerForm, EventWriter
from server.api.auth import InferenceKey
from server.api.body import json_body
from server.api.context import ContextDep, ServerContext
from server.api.error_responses import ApiError, json_response
from server.api.job import Job
from server.api.outputs import Completion, TextDelta, Usage
from server.api.pages import page_body, page_of
from server.api.wire import MAX_MODEL_CHARS, ChatCompletionBody, SamplingBody
from server.api.wire_fields import MetadataBody, check_metadata
from server.catalog.answers import AnswerKind, AnswerQuery, AnswerRecord
from server.errors import InvalidRequestError

router = APIRouter()
Keep = Callable[[Job, bytes], Awaitable[None]]
_METADATA, _END = "metadata[", "]"  # of a filter in the query


def read_metadata(given: Any) -> dict[str, str]:
    """What a request has as its metadata. Raises InvalidRequestError."""
    try:
        return check_metadata(msgspec.convert(given or {}, dict[str, str]))
    except (msgspec.ValidationError, ValueError) as error:
        reason = "must be an object of texts" if isinstance(error, msgspec.ValidationError) else str(error)
        raise InvalidRequestError(f"metadata: {reason}", param="metadata") from error


def kept_form(form: AnswerForm, context: ServerContext, owner: str, body: ChatCompletionBody) -> AnswerForm:
    """``form``, whose answers are kept for ``owner`` before they are sent. Raises InvalidRequestError."""
    metadata = read_metadata(body.metadata)
    messages = msgspec.json.encode([message.for_template() for message in body.messages]).decode()

    async def keep(job: Job, answer: bytes) -> None:
        told = msgspec.json.decode(answer, type=dict[str, Any]) | {"metadata": metadata}
        record = AnswerRecord(
            id=job.id,
            kind=AnswerKind.CHAT,
            owner=owner,
            model=job.model,
            created=float(job.created),
            expires=context.answers.expiry(),
            metadata=msgspec.json.encode(metadata).decode(),
            input=messages,
            body=msgspec.json.encode(told).decode(),
        )
        await context.answers.save(record)

    return KeptForm(form, keep)


class KeptForm(AnswerForm):
    """Another form, with a copy of the whole answer for ``keep``."""

    def __init__(self, form: AnswerForm, keep: Keep) -> None:
        self._form = form
        self._keep = keep

    @override
    async def whole(self, job: Job, completions: list[Completion], usage: Usage) -> list[bytes]:
        parts = await self._form.whole(job, completions, usage)
        await self._keep(job, b"".join(parts))
        return parts

    @override
    def writer(self, job: Job, body: SamplingBody) -> EventWriter:
        return _KeptWriter(self, self._form.writer(job, body), job)


class _KeptWriter(EventWriter):
    """Another writer; what it writes is kept as a whole before its end is told."""

    def __init__(self, form: KeptForm, writer: EventWriter, job: Job) -> None:
        self._form = form
        self._writer = writer
        self._job = job
        self._completions: dict[int, Completion] = {}

    @override
    def first(self) -> list[bytes]:
        return self._writer.first()

    @override
    def of(self, delta: TextDelta, usage: Usage) -> list[bytes]:
        self._completions.setdefault(delta.index, Completion(delta.index)).add(delta)
        return self._writer.of(delta, usage)

    @override
    async def last(self, usage: Usage) -> list[bytes]:
        completions = [self._completions[index] for index in sorted(self._completions)]
        await self._form.whole(self._job, completions, usage)
        return await self._writer.last(usage)

    @override
    def failure(self, error: ApiError) -> bytes:
        return self._writer.failure(error)


@router.get("/v1/chat/completions", response_model=None)
async def list_completions(
    caller: InferenceKey,
    request: Request,
    context: ContextDep,
    *,
    after: Annotated[str | None, Query(max_length=64)] = None,
    limit: Annotated[int, Query(ge=0, le=100)] = 20,
    order: Literal["asc", "desc"] = "asc",
    model: Annotated[str | None, Query(max_length=MAX_MODEL_CHARS)] = None,
) -> Response:
    """The caller's stored chat completions; with `metadata[key]=value`, those that say so."""
    wanted = {
        name.removeprefix(_METADATA).removesuffix(_END): value
        for name, value in request.query_params.items()
        if name.startswith(_METADATA) and name.endswith(_END)
    }
    last = None if after is None else (await context.answers.get(after, AnswerKind.CHAT, caller.owner)).number
    query = AnswerQuery(
        kind=AnswerKind.CHAT,
        owner=caller.owner,
        now=context.answers.now(),
        limit=limit + 1,
        after=last,
        ascending=order == "asc",
        model=model,
        metadata=wanted,
    )
    found = await context.answers.find(query)
    return json_response(page_body([_told(record) for record in found], limit))


@router.get("/v1/chat/completions/{completion_id}", response_model=None)
async def retrieve_completion(caller: InferenceKey, context: ContextDep, completion_id: str) -> Response:
    """A stored chat completion."""
    return json_response(_told(await context.answers.get(completion_id, AnswerKind.CHAT, caller.owner)))


@router.post("/v1/chat/completions/{completion_id}", response_model=None)
async def update_completion(
    caller: InferenceKey,
    context: ContextDep,
    completion_id: str,
    body: Annotated[MetadataBody, Depends(json_body(MetadataBody))],
) -> Response:
    """Give a stored chat completion other metadata."""
    metadata = body.metadata or {}
    record = await context.answers.get(completion_id, AnswerKind.CHAT, caller.owner)
    told = _told(record) | {"metadata": metadata}
    changed = msgspec.structs.replace(
        record, metadata=msgspec.json.encode(metadata).decode(), body=msgspec.json.encode(told).decode()
    )
    await context.answers.save(changed)
    return json_response(told)


@router.delete("/v1/chat/completions/{completion_id}", response_model=None)
async def delete_completion(caller: InferenceKey, context: ContextDep, completion_id: str) -> Response:
    """Keep a chat completion no longer."""
    record = await context.answers.get(completion_id, AnswerKind.CHAT, caller.owner)
    await context.answers.forget(record.id)
    return json_response({"id": record.id, "object": "chat.completion.deleted", "deleted": True})


@router.get("/v1/chat/completions/{completion_id}/messages", response_model=None)
async def list_messages(
    caller: InferenceKey,
    context: ContextDep,
    completion_id: str,
    *,
    after: Annotated[str | None, Query(max_length=128)] = None,
    limit: Annotated[int, Query(ge=0, le=100)] = 20,
    order: Literal["asc", "desc"] = "asc",
) -> Response:
    """The messages that a stored chat completion answered."""
    record = await context.answers.get(completion_id, AnswerKind.CHAT, caller.owner)
    sent = msgspec.json.decode(record.input, type=list[dict[str, Any]])
    messages = [_message(record.id, number, message) for number, message in enumerate(sent)]
    page = page_of(messages, after=after, limit=limit, order=order, absent="the completion has no message")
    return json_response(page)


def _told(record: AnswerRecord) -> dict[str, Any]:
    return msgspec.json.decode(record.body, type=dict[str, Any])


def _message(id: str, number: int, message: dict[str, Any]) -> dict[str, Any]:
    """A message as it is told of later: content as a text, or else as parts."""
    content = message.get("content")
    parts = content if isinstance(content, list) else None
    return {**message, "id": f"{id}-{number}", "content": None if parts else content, "content_parts": parts}
