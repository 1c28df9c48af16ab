"""``POST /pooling``: vectors, classes, or either of every token, as plain numbers."""

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
from server.api.pooling.plan import VectorPlan, embedding_plan, head_params, prompt_of
from server.api.pooling.run import Binary, PooledOutputs, answer
from server.api.pooling.vectors import (
    as_read,
    encoded_vector,
    head_of,
    needed_head,
    numbers_of,
    raw_vectors,
)
from server.api.pooling.wire import PoolingBody
from server.engine.messages import Pooling
from server.errors import InvalidRequestError

router = APIRouter()
Body = Annotated[PoolingBody, Depends(json_body(PoolingBody))]


@router.post("/v1/pooling", response_model=None)
async def pooling(_: InferenceKey, request: Request, context: ContextDep, body: Body) -> Response:
    """The numbers of each input."""
    return await answer(request, context, body, pooling_job, partial(pooling_answer, body))


async def pooling_job(
    context: ServerContext, body: PoolingBody, adapter: AdapterKey | None, started: float
) -> PooledJob:
    """The job of a request for numbers. Raises InvalidRequestError."""
    plan = _plan(context, body, adapter)
    params, width = plan.params, plan.width
    head = head_of(context, adapter) if params.through_head else None
    check_count(context, len(body.inputs), len(body.inputs) * width, "input")
    budget, before = budget_of(context, body, adapter, "input"), prompt_of(context, body, adapter)
    prompts = await plan.input_prompts(body, before, budget)
    if head is not None:
        prompts = as_read(prompts, head)
    if params.pooling is Pooling.ALL:
        check_count(context, len(prompts), sum(len(prompt.ids) for prompt in prompts) * width, "input")
    params = await plan.behind(before, prompts, budget)
    return make_job(context, body, adapter, prompts, params, prefix="pool", started=started, layers=plan.layers)


def _plan(context: ServerContext, body: PoolingBody, adapter: AdapterKey | None) -> VectorPlan:
    size, head = check_served(context), head_of(context, adapter)
    task = body.task or ("embed" if head is None else "token_classify" if head.of_tokens else "classify")
    if task in ("embed", "token_embed"):
        plan = embedding_plan(context, body, adapter, size, plain=task == "token_embed")
        return plan if task == "embed" else plan.of_tokens
    head = needed_head(context, adapter)
    if head.of_tokens != (task == "token_classify"):
        other = "token_classify" if head.of_tokens else "classify"
        raise InvalidRequestError(f"the head of this adapter answers to the task {other}", param="task")
    if body.dimensions is not None:
        raise InvalidRequestError("`dimensions` is for embeddings; a head has its outputs", param="dimensions")
    params = head_params(context, adapter, head, activated=body.use_activation is not False)
    return VectorPlan(params, head.num_labels)


def pooling_answer(body: PoolingBody, outputs: PooledOutputs) -> dict[str, Any] | Binary:
    """vLLM's answer; of every token a list of rows, or all of them in base64, or as they are."""
    if body.wants_bytes:
        of_tokens = outputs.job.pooling.pooling is Pooling.ALL
        rows = [len(prompt.ids) for prompt in outputs.job.prompts]
        widths = [len(vector) // 4 for vector in outputs.vectors]
        shapes = [[count, width // count] if of_tokens else [width] for count, width in zip(rows, widths, strict=True)]
        return raw_vectors(body, outputs, shapes)
    return {
        "id": outputs.job.id,
        "object": "list",
        "created": outputs.job.created,
        "model": outputs.job.model,
        "data": _entries(body, outputs),
        "usage": outputs.usage(),
    }


def _entries(body: PoolingBody, outputs: PooledOutputs) -> Iterator[dict[str, Any]]:
    is_rows = outputs.job.pooling.pooling is Pooling.ALL and body.encoding_format != "base64"
    for index, (prompt, vector) in enumerate(zip(outputs.job.prompts, outputs.vectors, strict=True)):
        data = _rows(vector, len(prompt.ids)) if is_rows else encoded_vector(vector, body)
        yield {"index": index, "object": "pooling", "data": data}


def _rows(vector: bytes, count: int) -> Iterator[list[float]]:
    numbers = numbers_of(vector)
    width = len(numbers) // count
    return (list(numbers[i * width : (i + 1) * width]) for i in range(count))
