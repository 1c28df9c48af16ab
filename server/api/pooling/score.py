"""``POST /v1/score`` and ``/v1/rerank``: how well texts go together.

By an adapter with a head of one output, which reads both texts at once; by the cosine of embeddings without one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from server.adapter_key import AdapterKey
from server.api.auth import InferenceKey
from server.api.body import json_body
from server.api.context import ContextDep, ServerContext
from server.api.context_budget import ContextBudget
from server.api.pooling.job import PooledJob, budget_of, check_count, check_served, encoded_pairs, make_job
from server.api.pooling.plan import head_params, usual_plan, usual_prompt
from server.api.pooling.run import PooledOutputs, answer
from server.api.pooling.vectors import as_read, head_of
from server.api.pooling.wire import PooledBody, RerankBody, ScoreBody
from server.errors import InvalidRequestError

router = APIRouter()
Scored = Annotated[ScoreBody, Depends(json_body(ScoreBody))]
Ranked = Annotated[RerankBody, Depends(json_body(RerankBody))]


@router.post("/v1/score", response_model=None)
async def score(_: InferenceKey, request: Request, context: ContextDep, body: Scored) -> Response:
    """A score for each pair of texts."""
    return await answer(request, context, body, score_job, partial(score_answer, body))


@router.post("/v1/rerank", response_model=None)
@router.post("/v2/rerank", response_model=None)
async def rerank(_: InferenceKey, request: Request, context: ContextDep, body: Ranked) -> Response:
    """Documents in the order in which they answer a query."""
    return await answer(request, context, body, rerank_job, partial(rerank_answer, body))


async def score_job(context: ServerContext, body: ScoreBody, adapter: AdapterKey | None, started: float) -> PooledJob:
    """The job of a request for scores. Raises InvalidRequestError."""
    first, second = ([side] if isinstance(side, str) else side for side in (body.first, body.second))
    budget = budget_of(context, body, adapter, "text_2")
    return await _job(context, body, budget, (adapter, first, second, body.use_activation), started)


async def rerank_job(context: ServerContext, body: RerankBody, adapter: AdapterKey | None, started: float) -> PooledJob:
    """The job of a request to rank. Raises InvalidRequestError."""
    budget = budget_of(context, body, adapter, "documents")
    check_count(context, len(body.documents), 0, "documents")
    documents = body.texts
    if (most := body.max_tokens_per_doc) is not None:
        documents = [await _cut(text, most, budget) for text in documents]
    return await _job(context, body, budget, (adapter, [body.query], documents, body.use_activation), started)


Asked = tuple[AdapterKey | None, Sequence[str], Sequence[str], bool | None]


async def _job(
    context: ServerContext, body: PooledBody, budget: ContextBudget, asked: Asked, started: float
) -> PooledJob:
    """Of an adapter with a head a prompt for each pair; else one for each text, the first side's before the other's."""
    adapter, first, second, activation = asked
    size, head = check_served(context), head_of(context, adapter)
    special = body.add_special_tokens is not False
    if head is None:
        check_count(context, len(first) + len(second), 0, budget.field_name)
        plan, before = usual_plan(context, adapter, size, normalize=True), usual_prompt(context, adapter)
        prompts = await plan.prompts([*first, *second], before, budget, special=special)
        check_count(context, len(prompts), len(prompts) * plan.width, budget.field_name)
        params = await plan.behind(before, prompts, budget)
        return make_job(context, body, adapter, prompts, params, prefix="score", started=started, layers=plan.layers)
    if head.of_tokens or head.num_labels != 1:
        what = "of every token" if head.of_tokens else f"of {head.num_labels} classes"
        raise InvalidRequestError(
            f"the head of this adapter tells {what}, which is no score; ask it at /v1/classify, or name an adapter "
            "with one output, or one without a head",
            param="model",
        )
    check_count(context, len(second), 0, budget.field_name)
    ones = first if len(first) == len(second) else [first[0]] * len(second)
    prompts = await encoded_pairs(ones, second, budget, special=special)
    params = head_params(context, adapter, head, activated=activation is not False)
    return make_job(context, body, adapter, as_read(prompts, head), params, prefix="score", started=started)


async def _cut(text: str, most: int, budget: ContextBudget) -> str:
    """The beginning of ``text``, of so many tokens at most."""
    ids = await budget.text.encode_off_loop(text, add_special_tokens=False)
    return text if len(ids) <= most else budget.text.decode(ids[:most], skip_special_tokens=False)


def scores_of(outputs: PooledOutputs, second: int) -> list[float]:
    """A score for each of the ``second`` texts."""
    rows = np.stack([np.frombuffer(vector, "<f4") for vector in outputs.vectors])
    if outputs.job.pooling.through_head:
        return [float(row[0]) for row in rows]
    ones, others = rows[: len(rows) - second], rows[len(rows) - second :]
    return [float(one) for one in (ones.astype(np.float64) * others).sum(axis=1)]


def score_answer(body: ScoreBody, outputs: PooledOutputs) -> dict[str, Any]:
    """vLLM's answer."""
    job = outputs.job
    scores = enumerate(scores_of(outputs, body.counts[1]))
    return {
        "id": job.id,
        "object": "list",
        "created": job.created,
        "model": job.model,
        "data": [{"index": index, "object": "score", "score": value} for index, value in scores],
        "usage": outputs.usage(),
    }


def rerank_answer(body: RerankBody, outputs: PooledOutputs) -> dict[str, Any]:
    """The answer of Jina's and Cohere's servers: the best documents first, in the order given where they are equal."""
    texts = body.texts
    scores = scores_of(outputs, len(texts))
    order = sorted(range(len(texts)), key=lambda index: -scores[index])
    usage = outputs.usage()
    return {
        "id": f"rerank-{outputs.job.id.partition('-')[2]}",
        "model": outputs.job.model,
        "results": _results(body, texts, scores, order[: body.top_n or None]),
        "usage": {name: usage[name] for name in ("prompt_tokens", "total_tokens")},
        "meta": {"billed_units": {"search_units": 1}},
    }


def _results(
    body: RerankBody, texts: Sequence[str], scores: Sequence[float], order: Sequence[int]
) -> Iterator[dict[str, Any]]:
    for index in order:
        document = {"document": {"text": texts[index]}} if body.return_documents is not False else {}
        yield {"index": index, **document, "relevance_score": scores[index]}
