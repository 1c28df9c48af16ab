"""``/v1/responses``."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from server.adapter_key import AdapterKey
from server.api.auth import Caller, InferenceKey
from server.api.body import json_body
from server.api.context import ContextDep, ServerContext
from server.api.error_responses import json_response
from server.api.files import page_body
from server.api.prepare import Job, asked_model, chat_job
from server.api.respond import answer
from server.api.responses.body import MAX_ID, PromptBody, ResponseBody
from server.api.responses.chat import as_response_error, chat_of
from server.api.responses.form import ResponseForm
from server.api.responses.keeping import check_id, conversation_of, inputs_of, keep_response, response_of
from server.api.responses.replay import replayed
from server.api.wire import ChatCompletionBody
from server.catalog.answers import AnswerKind, AnswerRecord
from server.errors import InvalidRequestError

router = APIRouter()
Body = Annotated[ResponseBody, Depends(json_body(ResponseBody))]


@router.post("/v1/responses", response_model=None)
async def create_response(caller: InferenceKey, request: Request, context: ContextDep, body: Body) -> Response:
    """Answer a list of items, whole or as a stream."""
    conversation = await conversation_of(context, caller.owner, body)
    chat = chat_of(body, conversation.items, earlier=len(conversation.earlier))
    keep = partial(keep_response, context, caller.owner, conversation) if body.keeps else None
    form = ResponseForm(body, chat.named(context.base_name), keep)
    return await answer(request, context, chat, form, response_job)


@router.post("/v1/responses/input_tokens", response_model=None)
async def count_input_tokens(
    caller: InferenceKey, context: ContextDep, body: Annotated[PromptBody, Depends(json_body(PromptBody))]
) -> Response:
    """How many tokens the input of a response would be."""
    conversation = await conversation_of(context, caller.owner, body)
    chat = chat_of(body, conversation.items, earlier=len(conversation.earlier))
    caller.check_asked(context.registry, chat)
    with context.registry.lease(asked_model(context.registry, chat), chat.sticky) as lease:
        job = await response_job(context, chat, lease.key, 0.0)
    return json_response({"object": "response.input_tokens", "input_tokens": job.prompt_tokens})


@router.get("/v1/responses/{response_id}", response_model=None)
async def retrieve_response(
    caller: InferenceKey,
    context: ContextDep,
    response_id: str,
    *,
    stream: bool = False,
    starting_after: Annotated[int | None, Query(ge=0)] = None,
) -> Response:
    """A response that was kept, as it is or as the events of its making."""
    record = await kept(context, caller, response_id)
    if not stream:
        return json_response(response_of(record))
    return Response(b"".join(replayed(response_of(record), starting_after)), media_type="text/event-stream")


@router.delete("/v1/responses/{response_id}", response_model=None)
async def delete_response(caller: InferenceKey, context: ContextDep, response_id: str) -> Response:
    """Keep a response no longer."""
    record = await kept(context, caller, response_id)
    await context.answers.delete(record)
    return json_response({"id": record.id, "object": "response", "deleted": True})


@router.get("/v1/responses/{response_id}/input_items", response_model=None)
async def list_input_items(
    caller: InferenceKey,
    context: ContextDep,
    response_id: str,
    *,
    after: Annotated[str | None, Query(max_length=MAX_ID)] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Literal["asc", "desc"] = "desc",
) -> Response:
    """The items that a response answered, the newest first."""
    items = inputs_of(await kept(context, caller, response_id))
    if order == "desc":
        items.reverse()
    if after is not None:
        places = [place for place, item in enumerate(items) if item["id"] == after]
        if not places:
            raise InvalidRequestError(f"after: the response has no item '{after[:80]}'", param="after")
        items = items[places[0] + 1 :]
    return json_response(page_body(items[: limit + 1], limit))


async def kept(context: ServerContext, caller: Caller, response_id: str) -> AnswerRecord:
    """The response of that id. Raises InvalidRequestError, UnknownResponseError."""
    check_id(response_id)
    return await context.answers.get(response_id, AnswerKind.RESPONSE, caller.owner)


async def response_job(
    context: ServerContext, chat: ChatCompletionBody, adapter: AdapterKey | None, started: float
) -> Job:
    """The job of a response. Raises InvalidRequestError, in the words of responses."""
    try:
        return await chat_job(context, chat, adapter, started)
    except InvalidRequestError as error:
        raise as_response_error(error) from error
