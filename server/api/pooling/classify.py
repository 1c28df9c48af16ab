"""``POST /v1/classify``: what the head of an adapter makes of a text, or of each of its tokens."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Annotated, Any

import msgspec
import numpy as np
from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from adapters.package.head import PackageHead
from server.adapter_key import AdapterKey
from server.api.auth import InferenceKey
from server.api.body import json_body
from server.api.context import ContextDep, ServerContext
from server.api.context_budget import ContextBudget
from server.api.job import Prompt
from server.api.pooling.entities import find_entities
from server.api.pooling.job import (
    PooledJob,
    budget_of,
    check_count,
    check_served,
    encoded_pairs,
    input_prompts,
    make_job,
)
from server.api.pooling.plan import head_params
from server.api.pooling.run import PooledOutputs, answer
from server.api.pooling.vectors import as_read, needed_head, numbers_of
from server.api.pooling.wire import ClassifyBody
from server.errors import InvalidRequestError
from server.text.tokenizer import TextProcessor

router = APIRouter()
Body = Annotated[ClassifyBody, Depends(json_body(ClassifyBody))]


@router.post("/v1/classify", response_model=None)
async def classify(_: InferenceKey, request: Request, context: ContextDep, body: Body) -> Response:
    """The class of each input, by the adapter's own head."""
    return await answer(request, context, body, classify_job, partial(classify_answer, context, body))


async def classify_job(
    context: ServerContext, body: ClassifyBody, adapter: AdapterKey | None, started: float
) -> PooledJob:
    """The job of a request for classes. Raises InvalidRequestError."""
    head = needed_head(context, adapter)
    check_served(context)
    check_count(context, len(body.inputs), len(body.inputs) * head.num_labels, "input")
    prompts = as_read(await _prompts(body, head, budget_of(context, body, adapter, "input")), head)
    if body.strategy and not head.of_tokens:
        raise InvalidRequestError(
            "the head of this adapter tells of whole texts, not of tokens; leave out `aggregation_strategy`",
            param="aggregation_strategy",
        )
    if head.of_tokens:
        check_count(context, len(prompts), sum(len(prompt.ids) for prompt in prompts) * head.num_labels, "input")
    pooling = head_params(context, adapter, head, activated=body.wants_probabilities)
    if body.strategy:  # one label is right, however the head was trained
        pooling = msgspec.structs.replace(pooling, activation="softmax")
    return make_job(context, body, adapter, prompts, pooling, prefix="classify", started=started)


async def _prompts(body: ClassifyBody, head: PackageHead, budget: ContextBudget) -> list[Prompt]:
    if not body.seconds:
        return await input_prompts(body, budget)
    if head.of_tokens:
        raise InvalidRequestError(
            "the head of this adapter tells of every token; leave out `text_pair`", param="text_pair"
        )
    firsts = [one for one in body.inputs if isinstance(one, str)]
    return await encoded_pairs(firsts, body.seconds, budget, special=body.add_special_tokens is not False)


def classify_answer(context: ServerContext, body: ClassifyBody, outputs: PooledOutputs) -> dict[str, Any]:
    """vLLM's answer; of a head of tokens every entry has ``tokens`` in the place of a label, or ``entities``.

    Of a text each has ``start`` and ``end``, between which characters (Unicode code points) it stands.
    """
    job = outputs.job
    head = needed_head(context, job.adapter)
    of_each = _of_tokens if body.strategy is None else _entities
    entries = of_each(context, head, body, outputs) if head.of_tokens else _of_texts(head, outputs)
    return {
        "id": job.id,
        "object": "list",
        "created": job.created,
        "model": job.model,
        "data": entries,
        "usage": outputs.usage(),
    }


def _of_texts(head: PackageHead, outputs: PooledOutputs) -> Iterator[dict[str, Any]]:
    for index, vector in enumerate(outputs.vectors):
        yield {"index": index, **_class_of(head, list(numbers_of(vector))), "num_classes": head.num_labels}


def _class_of(head: PackageHead, numbers: list[float]) -> dict[str, Any]:
    likeliest = max(range(len(numbers)), key=numbers.__getitem__)
    return {"label": head.label(likeliest), "probs": numbers}


def _of_tokens(
    context: ServerContext, head: PackageHead, body: ClassifyBody, outputs: PooledOutputs
) -> Iterator[dict[str, Any]]:
    text = context.text_of(outputs.job.adapter)
    given = body.inputs if body.messages is None else []
    for index, (prompt, vector) in enumerate(zip(outputs.job.prompts, outputs.vectors, strict=True)):
        numbers, width = numbers_of(vector), head.num_labels
        rows = (list(numbers[i * width : (i + 1) * width]) for i in range(len(prompt.ids)))
        places = _places(text, given[index] if given else [], prompt.ids)
        tokens = (
            {"token_id": token_id, "token": text.token_text(token_id), **place, **_class_of(head, row)}
            for token_id, place, row in zip(prompt.ids, places, rows, strict=True)
        )
        yield {"index": index, "tokens": tokens, "num_classes": width}


def _places(text: TextProcessor, given: str | list[int], ids: list[int]) -> list[dict[str, int]]:
    spans = text.char_spans(given, ids) if isinstance(given, str) else None
    return [{"start": start, "end": end} for start, end in spans] if spans else [{}] * len(ids)


def _entities(
    context: ServerContext, head: PackageHead, body: ClassifyBody, outputs: PooledOutputs
) -> Iterator[dict[str, Any]]:
    text = context.text_of(outputs.job.adapter)
    ignored = ["O"] if body.ignore_labels is None else body.ignore_labels
    assert body.strategy is not None
    for index, (given, prompt, vector) in enumerate(
        zip(body.inputs, outputs.job.prompts, outputs.vectors, strict=True)
    ):
        pieces = text.word_pieces(given, prompt.ids) if isinstance(given, str) else None
        shares = np.frombuffer(vector, "<f4").reshape(-1, head.num_labels)
        # a text without tokens is read as the token that begins texts: nothing stands in it
        found = (
            find_entities(pieces, shares, body.strategy, label=head.label, join=text.joined, ignored=ignored)
            if pieces
            else ()
        )
        yield {"index": index, "entities": list(found), "num_classes": head.num_labels}
