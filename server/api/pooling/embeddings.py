"""``POST /v1/embeddings``: a vector for each input, of the base or through an adapter."""

from __future__ import annotations

import base64
from array import array
from collections.abc import Iterator
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from server.adapter_key import AdapterKey
from server.api.auth import InferenceKey
from server.api.body import json_body
from server.api.context import ContextDep, ServerContext
from server.api.pooling.job import PooledJob, budget_of, check_count, check_served, input_prompts, make_job
from server.api.pooling.run import PooledOutputs, answer
from server.api.pooling.wire import EmbeddingBody, VectorBody
from server.engine.messages import Pooling, PoolingParams
from server.errors import InvalidRequestError

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
    size = check_served(context)
    pooling = embedding_params(context, body, adapter, size)
    check_count(context, len(body.inputs), len(body.inputs) * (pooling.dimensions or size), "input")
    prompts = await input_prompts(body, budget_of(context, body, adapter, "input"))
    return make_job(context, body, adapter, prompts, pooling, prefix="embd", started=started)


def embedding_params(context: ServerContext, body: VectorBody, adapter: AdapterKey | None, size: int) -> PoolingParams:
    """How hidden states become embeddings: as ``body`` says, else as the adapter was trained, else as is usual."""
    if body.dimensions is not None and body.dimensions > size:
        raise InvalidRequestError(
            f"dimensions is {body.dimensions}, and the vectors of this base have {size}; ask for no more",
            param="dimensions",
        )
    manifest = context.registry.leased(adapter).manifest if adapter is not None else None
    trained = manifest.pooled if manifest is not None else None
    pooling = body.pooling or (trained.pooling if trained is not None else None) or "last"
    asked = body.normalize if body.normalize is not None else body.use_activation
    normalize = asked if asked is not None else trained is None or trained.normalize
    return PoolingParams(pooling=Pooling(pooling), dimensions=body.dimensions or 0, normalize=normalize)


def embedding_answer(body: EmbeddingBody, outputs: PooledOutputs) -> dict[str, Any]:
    """OpenAI's answer; its vectors are made while it is written."""
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
        yield {"object": "embedding", "index": index, "embedding": encoded_vector(vector, body.encoding_format)}


def encoded_vector(vector: bytes, encoding: str | None) -> str | Iterator[float]:
    """Little-endian float32 in base64, or the numbers."""
    if encoding == "base64":
        return base64.b64encode(vector).decode("ascii")
    return iter(numbers_of(vector))


def numbers_of(vector: bytes) -> array[float]:
    """The numbers of a vector."""
    found = array("f")
    found.frombytes(vector)
    return found
