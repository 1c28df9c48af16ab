"""``/v1/messages``."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from server.api.anthropic_messages.body import CountBody, MessageBody
from server.api.anthropic_messages.chat import MESSAGE_NAMES, chat_of
from server.api.anthropic_messages.form import MessageForm
from server.api.auth import InferenceKey
from server.api.body import json_body
from server.api.context import ContextDep
from server.api.error_responses import json_response
from server.api.prepare import asked_model, chat_job
from server.api.renaming import told_as
from server.api.respond import answer

router = APIRouter()


@router.post("/v1/messages", response_model=None)
async def create_message(
    _: InferenceKey,
    request: Request,
    context: ContextDep,
    body: Annotated[MessageBody, Depends(json_body(MessageBody))],
) -> Response:
    """The next message of a conversation, whole or as a stream, as Anthropic's API has it."""
    with told_as(MESSAGE_NAMES):
        return await answer(request, context, chat_of(body), MessageForm(), chat_job)


@router.post("/v1/messages/count_tokens", response_model=None)
async def count_tokens(
    caller: InferenceKey, context: ContextDep, body: Annotated[CountBody, Depends(json_body(CountBody))]
) -> Response:
    """How many tokens the input of a message would be."""
    with told_as(MESSAGE_NAMES):
        chat = chat_of(body)
        caller.check_asked(context.registry, chat)
        with context.registry.lease(asked_model(context.registry, chat), chat.sticky) as lease:
            job = await chat_job(context, chat, lease.key, 0.0)
    return json_response({"input_tokens": job.prompt_tokens})
