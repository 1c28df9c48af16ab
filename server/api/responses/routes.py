"""``/v1/responses``."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from server.adapter_key import AdapterKey
from server.api.auth import InferenceKey
from server.api.body import json_body
from server.api.context import ContextDep, ServerContext
from server.api.error_responses import json_response
from server.api.prepare import Job, asked_model, chat_job
from server.api.respond import answer
from server.api.responses.body import PromptBody, ResponseBody
from server.api.responses.chat import as_response_error, chat_of
from server.api.responses.form import ResponseForm
from server.api.responses.items import as_items
from server.api.wire import ChatCompletionBody
from server.errors import InvalidRequestError

router = APIRouter()
Body = Annotated[ResponseBody, Depends(json_body(ResponseBody))]


@router.post("/v1/responses", response_model=None)
async def create_response(caller: InferenceKey, request: Request, context: ContextDep, body: Body) -> Response:
    """Answer a list of items, whole or as a stream."""
    chat = chat_of(body, as_items(body.input))
    form = ResponseForm(body, chat.named(context.base_name))
    return await answer(request, context, chat, form, response_job)


@router.post("/v1/responses/input_tokens", response_model=None)
async def count_input_tokens(
    caller: InferenceKey, context: ContextDep, body: Annotated[PromptBody, Depends(json_body(PromptBody))]
) -> Response:
    """How many tokens the input of a response would be."""
    chat = chat_of(body, as_items(body.input))
    tokens = await input_tokens(caller, context, chat)
    return json_response({"object": "response.input_tokens", "input_tokens": tokens})


async def input_tokens(caller: InferenceKey, context: ServerContext, chat: ChatCompletionBody) -> int:
    """The tokens of a chat's prompt. Raises InvalidRequestError for one that is too long."""
    caller.check_asked(context.registry, chat)
    with context.registry.lease(asked_model(context.registry, chat), chat.sticky) as lease:
        return (await response_job(context, chat, lease.key, 0.0)).prompt_tokens


async def response_job(
    context: ServerContext, chat: ChatCompletionBody, adapter: AdapterKey | None, started: float
) -> Job:
    """The job of a response. Raises InvalidRequestError, in the words of responses."""
    try:
        return await chat_job(context, chat, adapter, started)
    except InvalidRequestError as error:
        raise as_response_error(error) from error
