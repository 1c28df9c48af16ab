"""``/v1/responses``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import ExitStack
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from server.api.auth import Caller, InferenceKey
from server.api.body import json_body
from server.api.context import ContextDep, ServerContext
from server.api.error_responses import ApiError, json_response
from server.api.event_stream import ClientGone, EventStream
from server.api.outputs import Usage
from server.api.pages import page_of
from server.api.prepare import chat_job
from server.api.renaming import told_as
from server.api.respond import GONE_STATUS, answer, events_of
from server.api.responses.background import PLACE, UNFINISHED, BackgroundRun
from server.api.responses.body import MAX_ID, PromptBody, ResponseBody
from server.api.responses.chat import RESPONSE_NAMES, chat_of
from server.api.responses.form import ResponseForm
from server.api.responses.jobs import truncated_job
from server.api.responses.keeping import (
    answered_items,
    check_id,
    conversation_of,
    extend_conversation,
    keep_response,
    response_of,
    turn_of,
)
from server.api.responses.replay import replayed
from server.api.responses.shortening import counted_job, shortened
from server.api.responses.socket import recollection_of
from server.catalog.answers import AnswerKind, AnswerRecord
from server.errors import InvalidRequestError

router = APIRouter()
Body = Annotated[ResponseBody, Depends(json_body(ResponseBody))]


@router.post("/v1/responses", response_model=None)
async def create_response(caller: InferenceKey, request: Request, context: ContextDep, body: Body) -> Response:
    """Answer a list of items, whole or as a stream."""
    with told_as(RESPONSE_NAMES):
        return await _created(caller, request, context, body)


async def _created(caller: Caller, request: Request, context: ServerContext, body: ResponseBody) -> Response:
    turn = ExitStack()
    try:
        if (taken := await turn_of(context, caller.owner, body)) is not None:
            turn.enter_context(taken)
        return await _answered(caller, request, context, body, turn)
    except BaseException:
        turn.close()
        raise


async def _answered(
    caller: Caller, request: Request, context: ServerContext, body: ResponseBody, turn: ExitStack
) -> Response:
    """The answer. ``turn`` is closed once what it adds to a conversation is there, or it is known that nothing is."""
    recollection = recollection_of(request)
    conversation = await conversation_of(context, caller.owner, body, recollection)
    if body.generate is not False:
        try:
            conversation = await shortened(request, context, caller, body, conversation)
        except ClientGone:
            turn.close()
            return Response(status_code=GONE_STATUS)
    chat = chat_of(body, conversation.items, earlier=len(conversation.earlier))

    async def keep(response: dict[str, Any]) -> None:
        await extend_conversation(context, conversation, response)
        if response["status"] not in UNFINISHED:
            turn.close()  # before the client is told, and answers
        if body.keeps:
            await keep_response(context, caller.owner, conversation, response)
        if recollection is not None:
            recollection.remember(response["id"], [*conversation.items, *response["output"]])

    before = () if conversation.summary is None else (conversation.summary,)
    form = ResponseForm(body, chat.named(context.base_name), keep, before, conversation.spent)
    if body.generate is False:
        return await _unanswered(body, form)
    make_job = truncated_job if body.truncation == "auto" else chat_job
    if body.background:
        events = events_of(request, context, chat.model_copy(update={"stream": True}), form, make_job)
        return await _behind(context, body, form, events, turn)
    return await answer(request, context, chat, form, make_job, held=turn)


async def _unanswered(body: ResponseBody, form: ResponseForm) -> Response:
    """A response without output, from which others go on."""
    response = form.response("completed", [], Usage(0))
    await form.kept(response)
    if not body.stream:
        return json_response(response)
    return Response(b"".join(replayed(response)), media_type="text/event-stream")


async def _behind(
    context: ServerContext,
    body: ResponseBody,
    form: ResponseForm,
    events: AsyncGenerator[bytes, None],
    turn: ExitStack,
) -> Response:
    """Begin a response that is made behind the request: it is queued, or refused at once."""
    queued = {**form.response("queued"), PLACE: context.background.place}
    await form.kept(queued)
    run = BackgroundRun(events, lambda status, error: form.response(status, error=error), form.kept, turn.close)
    try:
        await context.background.begin(form.id, run)
    except Exception:
        await context.answers.forget(form.id)
        raise
    if body.stream:
        return _following(context, run, 0)
    return json_response(form.response("queued"))


def _following(context: ServerContext, run: BackgroundRun, first: int) -> Response:
    """The events of a run; who does not read them holds up nothing."""
    comments = context.config.stream_comment_seconds
    return EventStream(run.follow(first), {}, comments, asyncio.Event(), lambda: b"")


@router.post("/v1/responses/input_tokens", response_model=None)
async def count_input_tokens(
    caller: InferenceKey, context: ContextDep, body: Annotated[PromptBody, Depends(json_body(PromptBody))]
) -> Response:
    """How many tokens the input of a response would be."""
    conversation = await conversation_of(context, caller.owner, body)
    with told_as(RESPONSE_NAMES):
        chat = chat_of(body, conversation.items, earlier=len(conversation.earlier))
        job = await counted_job(context, caller, chat)
    return json_response({"object": "response.input_tokens", "input_tokens": job.prompt_tokens})


@router.get("/v1/responses", response_model=None)
async def open_socket(_: InferenceKey) -> Response:
    """Open a WebSocket, over which each message of the type response.create is answered by the events of a response."""
    raise ApiError(
        426,
        "send a response's body by POST, or open a WebSocket here (upgrade: websocket, sec-websocket-version: 13)",
        code="upgrade_required",
        headers={"upgrade": "websocket", "sec-websocket-version": "13"},
    )


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
    response = await _as_it_is(context, caller, response_id)
    if not stream:
        return json_response(response)
    if (run := context.background.get(response_id)) is not None:
        return _following(context, run, 0 if starting_after is None else starting_after + 1)
    return Response(b"".join(replayed(response, starting_after)), media_type="text/event-stream")


@router.post("/v1/responses/{response_id}/cancel", response_model=None)
async def cancel_response(caller: InferenceKey, context: ContextDep, response_id: str) -> Response:
    """End a response that is being made behind its request."""
    response = await _as_it_is(context, caller, response_id)
    if not response["background"]:
        raise InvalidRequestError("Cannot cancel a synchronous response.", param="response_id")
    if (run := context.background.get(response_id)) is not None:
        await run.cancel()
        response = await _as_it_is(context, caller, response_id)
    return json_response(response)


@router.delete("/v1/responses/{response_id}", response_model=None)
async def delete_response(caller: InferenceKey, context: ContextDep, response_id: str) -> Response:
    """Keep a response no longer."""
    record = await kept(context, caller, response_id)
    if (run := context.background.get(response_id)) is not None:
        await run.cancel()
    await context.answers.forget(record.id)
    return json_response({"id": record.id, "object": "response", "deleted": True})


@router.get("/v1/responses/{response_id}/input_items", response_model=None)
async def list_input_items(
    caller: InferenceKey,
    context: ContextDep,
    response_id: str,
    *,
    after: Annotated[str | None, Query(max_length=MAX_ID)] = None,
    limit: Annotated[int, Query(ge=0, le=100)] = 20,
    order: Literal["asc", "desc"] = "desc",
) -> Response:
    """The items that a response answered, the newest first."""
    items = await answered_items(context, await kept(context, caller, response_id))
    page = page_of(items, after=after, limit=limit, order=order, absent="the response has no item")
    return json_response(page)


async def kept(context: ServerContext, caller: Caller, response_id: str) -> AnswerRecord:
    """The response of that id. Raises InvalidRequestError, UnknownResponseError."""
    check_id(response_id)
    return await context.answers.get(response_id, AnswerKind.RESPONSE, caller.owner)


async def _as_it_is(context: ServerContext, caller: Caller, response_id: str) -> dict[str, Any]:
    """A response that was kept, made or not. Raises InvalidRequestError, UnknownResponseError."""
    response = response_of(await kept(context, caller, response_id))
    run = context.background.get(response_id)
    if response["status"] in UNFINISHED and run is not None and run.ended:  # since it was read
        response = response_of(await kept(context, caller, response_id))
    return context.background.found(response)
