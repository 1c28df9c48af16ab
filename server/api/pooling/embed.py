"""``POST /v2/embed``, as Cohere's clients ask for vectors."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from fastapi import APIRouter, Depends, Request
from pydantic import Field, field_validator, model_validator
from starlette.responses import Response

from server.adapter_key import AdapterKey
from server.api.auth import InferenceKey
from server.api.body import json_body
from server.api.context import ContextDep, ServerContext
from server.api.context_budget import budget_for
from server.api.pooling.job import PooledJob, check_count, check_served, make_job
from server.api.pooling.plan import check_dimensions, usual_plan, usual_prompt
from server.api.pooling.run import PooledOutputs, answer
from server.api.pooling.vectors import numbers_of
from server.api.pooling.wire import PooledBody
from server.api.unserved import UNSERVED
from server.api.wire_fields import Integer, Texts, Wire
from server.errors import InvalidRequestError

router = APIRouter()
EmbeddingType = Literal["float", "base64", "binary", "ubinary"]
MAX_TYPES = 8


class TextPart(Wire):
    """A part of an input."""

    type: Literal["text"]
    text: str = Field(min_length=1)


class PartsInput(Wire):
    """An input as its parts."""

    content: Annotated[list[TextPart], Field(fail_fast=True, min_length=1)]


class EmbedBody(PooledBody):
    """``POST /v2/embed``. What texts are for (``input_type``) says which of the base's prompts goes before them."""

    unsupported: ClassVar[dict[str, str]] = {
        **{name: reason for name, reason in UNSERVED.items() if name != "truncate"},
        "truncate_prompt_tokens": "use `truncate` and `max_tokens`",
        "dimensions": "use `output_dimension`",
    }

    texts: Texts | None = Field(None, min_length=1)
    inputs: Annotated[list[PartsInput], Field(fail_fast=True)] | None = Field(None, min_length=1)
    input_type: str | None = Field(None, max_length=64)
    output_dimension: Integer | None = Field(None, ge=1)
    embedding_types: list[EmbeddingType] | None = Field(None, min_length=1, max_length=MAX_TYPES)
    truncate: Literal["NONE", "START", "END"] | None = None
    max_tokens: Integer | None = Field(None, ge=1)

    @field_validator("texts")
    @classmethod
    def _check_texts(cls, texts: list[str] | None) -> list[str] | None:
        if texts is not None and not all(texts):
            raise ValueError("an input is empty; leave it out")
        return texts

    @model_validator(mode="after")
    def _one_of(self) -> EmbedBody:
        if (self.texts is None) == (self.inputs is None):
            raise ValueError("`texts` or `inputs` must be given, and not both")
        return self

    @property
    def read(self) -> list[str]:
        """The texts that vectors are made of."""
        return self.texts or ["\n".join(part.text for part in one.content) for one in self.inputs or ()]

    @property
    def types(self) -> list[EmbeddingType]:
        """How numbers are told."""
        return list(dict.fromkeys(self.embedding_types or ["float"]))


@router.post("/v2/embed", response_model=None)
async def embed(
    _: InferenceKey, request: Request, context: ContextDep, body: Annotated[EmbedBody, Depends(json_body(EmbedBody))]
) -> Response:
    """A vector for each text, in the types that are asked for."""
    return await answer(request, context, body, embed_job, partial(embed_answer, body))


async def embed_job(context: ServerContext, body: EmbedBody, adapter: AdapterKey | None, started: float) -> PooledJob:
    """The job of a request to embed. Raises InvalidRequestError."""
    size, before = check_served(context), usual_prompt(context, adapter, body.input_type)
    texts = body.read
    field = "inputs" if body.texts is None else "texts"
    most = body.output_dimension
    plan = check_dimensions(usual_plan(context, adapter, size, most), most, "output_dimension")
    if plan.width % 8 and {"binary", "ubinary"} & set(body.types):
        raise InvalidRequestError(
            f"embedding_types: eight numbers make a byte, and vectors have {plan.width}; ask for an "
            "`output_dimension` that is a multiple of 8",
            param="embedding_types",
        )
    check_count(context, len(texts), len(texts) * plan.width * len(body.types), field)
    budget = budget_for(context, adapter, field)
    limit = min(body.max_tokens or budget.left(0), budget.left(0))
    if body.truncate != "NONE":
        budget = replace(budget, keep=limit, keeps_end=body.truncate == "START")
    prompts = await plan.prompts(texts, before, budget, special=body.add_special_tokens is not False)
    if (longest := max(len(prompt.ids) for prompt in prompts)) > limit:
        raise InvalidRequestError(
            f"{field}: one has {longest} tokens, more than `max_tokens` ({limit}); let it be cut (`truncate`), or "
            "send less",
            param=field,
        )
    params = await plan.behind(before, prompts, budget)
    return make_job(context, body, adapter, prompts, params, prefix="embd", started=started, layers=plan.layers)


def embed_answer(body: EmbedBody, outputs: PooledOutputs) -> dict[str, Any]:
    """Cohere's answer; its vectors are made while it is written."""
    tokens = {"input_tokens": outputs.job.prompt_tokens}
    return {
        "id": outputs.job.id,
        "embeddings": {kind: _told(kind, outputs.vectors) for kind in body.types},
        "texts": body.texts or [],
        "response_type": "embeddings_by_type",
        "meta": {"api_version": {"version": "2"}, "billed_units": tokens, "tokens": tokens},
    }


def _told(kind: EmbeddingType, vectors: list[bytes]) -> Iterator[Any]:
    for vector in vectors:
        if kind == "float":
            yield list(numbers_of(vector))
        elif kind == "base64":
            yield base64.b64encode(vector).decode("ascii")
        else:
            bits = np.packbits(np.frombuffer(vector, "<f4") >= 0)
            yield (bits if kind == "ubinary" else bits.astype(np.int16) - 128).tolist()
