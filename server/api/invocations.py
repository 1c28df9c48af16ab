"""``POST /invocations``: the one path by which some platforms (SageMaker) send every kind of request."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Annotated, Any, ClassVar

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from server.api import completions
from server.api.auth import Caller, InferenceKey
from server.api.body import json_body
from server.api.context import ContextDep, ServerContext
from server.api.error_responses import ApiError
from server.api.pooling import classify, embeddings, plain, score
from server.api.pooling.wire import ClassifyBody, EmbeddingBody, PoolingBody, RerankBody, ScoreBody
from server.api.wire import ChatCompletionBody, CompletionBody, ModelBody
from server.errors import InvalidRequestError, UnknownModelError

router = APIRouter()


class InvocationBody(ModelBody):
    """What tells requests apart; each is read once more as what it is."""

    unsupported: ClassVar[Mapping[str, str]] = {}
    unsupported_words: ClassVar[Mapping[str, str]] = {}

    messages: Any = None
    prompt: Any = None
    input: Any = None
    query: Any = None
    documents: Any = None
    encoding_format: Any = None
    dimensions: Any = None
    pooling: Any = None
    task: Any = None
    text_1: Any = None
    data_1: Any = None
    queries: Any = None


Asked = Annotated[InvocationBody, Depends(json_body(InvocationBody))]


@router.post("/invocations", response_model=None)
async def invocations(caller: InferenceKey, request: Request, context: ContextDep, asked: Asked) -> Response:
    """Answer a request of any kind that has a path of its own: its fields tell which."""
    if asked.task is not None:
        return await plain.pooling(caller, request, context, await json_body(PoolingBody)(request))
    if asked.query is not None and asked.documents is not None:
        return await score.rerank(caller, request, context, await json_body(RerankBody)(request))
    if any(side is not None for side in (asked.text_1, asked.data_1, asked.queries)):
        return await score.score(caller, request, context, await json_body(ScoreBody)(request))
    if asked.prompt is not None:
        return await completions.completions(caller, request, context, await json_body(CompletionBody)(request))
    if asked.messages is None and asked.input is None:
        raise ApiError(
            400,
            "give `messages` (a chat), `prompt` (a completion), `input` (embeddings or classes), `query` with "
            "`documents` (ranks), or `text_1` with `text_2` (scores)",
        )
    return await _read_or_answered(caller, request, context, asked)


async def _read_or_answered(
    caller: Caller, request: Request, context: ServerContext, asked: InvocationBody
) -> Response:
    """Classes where the adapter has a head, vectors of inputs or where they are asked for, else a chat."""
    if _has_head(caller, context, asked):
        return await classify.classify(caller, request, context, await json_body(ClassifyBody)(request))
    vectors = any(field is not None for field in (asked.encoding_format, asked.dimensions, asked.pooling))
    if asked.messages is None or vectors:
        return await embeddings.embeddings(caller, request, context, await json_body(EmbeddingBody)(request))
    return await completions.chat_completions(caller, request, context, await json_body(ChatCompletionBody)(request))


def _has_head(caller: Caller, context: ServerContext, asked: InvocationBody) -> bool:
    """Whether an adapter with a head of its own is asked; what does not exist for its caller has none."""
    with suppress(UnknownModelError, InvalidRequestError):
        caller.check_asked(context.registry, asked)
        key = context.registry.find(asked.named(context.base_name))
        return key is not None and context.registry.leased(key).head is not None
    return False
