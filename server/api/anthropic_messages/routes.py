"""``/v1/messages``."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from server.adapter_key import AdapterKey
from server.api.anthropic_messages.body import CountBody, MessageBody
from server.api.anthropic_messages.chat import as_message_error, chat_of
from server.api.anthropic_messages.form import MessageForm
from server.api.auth import InferenceKey
from server.api.body import json_body
from server.api.context import ContextDep, ServerContext
from server.api.error_responses import json_response
from server.api.prepare import Job, asked_model, chat_job
from server.api.respond import answer
from server.api.wire import ChatCompletionBody
from server.errors import InvalidRequestError

router = APIRouter()


@router.post("/v1/messages", response_model=None)
async def create_message(
    _: InferenceKey,
    request: Request,
    context: ContextDep,
    body: Annotated[MessageBody, Depends(json_body(MessageBody))],
) -> Response:
    """The next message of a conversation, whole or as a stream, as Anthropic's API has it."""
    return await answer(request, context, chat_of(body), MessageForm(), message_job)


@router.post("/v1/messages/count_tokens", response_model=None)
async def count_tokens(
    caller: InferenceKey, context: ContextDep, body: Annotated[CountBody, Depends(json_body(CountBody))]
) -> Response:
    """How many tokens the input of a message would be."""
    chat = chat_of(body)
    caller.check_asked(context.registry, chat)
    with context.registry.lease(asked_model(context.registry, chat), chat.sticky) as lease:
        job = await message_job(context, chat, lease.key, 0.0)
    return json_response({"input_tokens": job.prompt_tokens})


async def message_job(
    context: ServerContext, chat: ChatCompletionBody, adapter: AdapterKey | None, started: float
) -> Job:
    """The job of a message. Raises InvalidRequestError, in the words of messages."""
    try:
        return await chat_job(context, chat, adapter, started)
    except InvalidRequestError as error:
        raise as_message_error(error) from error
