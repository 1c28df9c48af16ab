"""``POST /v1/embeddings``: a vector for each input, of the base or through an adapter."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from server.adapter_key import AdapterKey
from server.api.auth import InferenceKey
from server.api.body import json_body
from server.api.context import ContextDep, ServerContext
from server.api.pooling.job import PooledJob, budget_of, check_count, check_served, make_job
from server.api.pooling.plan import embedding_plan, prompt_of
from server.api.pooling.run import Binary, PooledOutputs, answer
from server.api.pooling.vectors import encoded_vector, raw_vectors
from server.api.pooling.wire import EmbeddingBody

router = APIRouter()
Body = Annotated[EmbeddingBody, Depends(json_body(EmbeddingBody))]


@router.post("/v1/embeddings", response_model=None)
async def embeddings(_: InferenceKey, request: Request, context: ContextDep, body: Body) -> Response:
    """A vector for each input."""
    return await answer(request, context, body, embedding_job, partial(embedding_answer, body))


async def embedding_job(
    context: ServerContext, body: EmbeddingBody, adapter: AdapterKey | None, started: float
) -> PooledJob:
    """The job of a request for embeddings. Raises InvalidRequestError."""
    plan = embedding_plan(context, body, adapter, check_served(context))
    check_count(context, len(body.inputs), len(body.inputs) * plan.width, "input")
    budget, before = budget_of(context, body, adapter, "input"), prompt_of(context, body, adapter)
    prompts = await plan.input_prompts(body, before, budget)
    params = await plan.behind(before, prompts, budget)
    return make_job(context, body, adapter, prompts, params, prefix="embd", started=started, layers=plan.layers)


def embedding_answer(body: EmbeddingBody, outputs: PooledOutputs) -> dict[str, Any] | Binary:
    """OpenAI's answer, whose vectors are made while it is written; or, as vLLM's, the vectors as they are."""
    if body.wants_bytes:
        return raw_vectors(body, outputs, [[len(vector) // 4] for vector in outputs.vectors])
    return {
        "id": outputs.job.id,
        "object": "list",
        "created": outputs.job.created,
        "model": outputs.job.model,
        "data": _entries(body, outputs),
        "usage": outputs.usage(),
    }


def _entries(body: EmbeddingBody, outputs: PooledOutputs) -> Iterator[dict[str, Any]]:
    for index, vector in enumerate(outputs.vectors):
        yield {"object": "embedding", "index": index, "embedding": encoded_vector(vector, body)}
