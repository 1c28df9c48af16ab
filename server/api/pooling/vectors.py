"""How vectors are asked of the engine, and how they are written: what of them the adapter's maker decides."""

from __future__ import annotations

import base64
from array import array
from collections.abc import Iterator

from adapters.package.head import PackageHead
from adapters.quoting import quote
from server.adapter_key import AdapterKey
from server.api.context import ServerContext
from server.api.job import Prompt
from server.api.pooling.wire import VectorBody
from server.engine.messages import Pooling, PoolingParams
from server.errors import InvalidRequestError


def trained_pooling(context: ServerContext, adapter: AdapterKey | None) -> Pooling:
    """Which hidden states an adapter was trained with; the last, as is usual for decoders, where nobody says it."""
    manifest = context.registry.leased(adapter).manifest if adapter is not None else None
    trained = manifest.pooled if manifest is not None else None
    return Pooling(trained.pooling) if trained is not None and trained.pooling else Pooling.LAST


def embedding_params(context: ServerContext, body: VectorBody, adapter: AdapterKey | None, size: int) -> PoolingParams:
    """How hidden states become embeddings: as ``body`` says, else as the adapter was trained, else as is usual."""
    if body.dimensions is not None and body.dimensions > size:
        raise InvalidRequestError(
            f"dimensions is {body.dimensions}, and the vectors of this base have {size}; ask for no more",
            param="dimensions",
        )
    manifest = context.registry.leased(adapter).manifest if adapter is not None else None
    trained = manifest.pooled if manifest is not None else None
    pooling = Pooling(body.pooling) if body.pooling else trained_pooling(context, adapter)
    asked = body.normalize if body.normalize is not None else body.use_activation
    normalize = asked if asked is not None else trained is None or trained.normalize
    return PoolingParams(pooling=pooling, dimensions=body.dimensions or 0, normalize=normalize)


def head_of(context: ServerContext, adapter: AdapterKey | None) -> PackageHead | None:
    """The head that an adapter brings; None for others and the base."""
    return context.registry.leased(adapter).head if adapter is not None else None


def needed_head(context: ServerContext, adapter: AdapterKey | None) -> PackageHead:
    """``head_of``. Raises InvalidRequestError where there is none."""
    head = head_of(context, adapter)
    if head is None:
        name = context.base_name if adapter is None else adapter.name
        raise InvalidRequestError(
            f"{quote(name)} has no head that tells classes apart; name an adapter that was trained for classification "
            "or regression, or ask this one at /v1/embeddings or /v1/chat/completions",
            param="model",
        )
    return head


def head_params(
    context: ServerContext, adapter: AdapterKey | None, head: PackageHead, *, activated: bool
) -> PoolingParams:
    """How hidden states go through ``head``."""
    return PoolingParams(
        pooling=Pooling.ALL if head.of_tokens else trained_pooling(context, adapter),
        through_head=True,
        activation=head.activation if activated else "",
    )


def as_read(prompts: list[Prompt], head: PackageHead) -> list[Prompt]:
    """``prompts`` without padding at their ends, whose hidden states transformers' classifiers do not look at."""
    if head.pad_token_id is None or head.of_tokens:
        return prompts
    return [_without_padding(prompt, head.pad_token_id) for prompt in prompts]


def _without_padding(prompt: Prompt, pad: int) -> Prompt:
    stop = len(prompt.ids)
    while stop > 1 and prompt.ids[stop - 1] == pad:
        stop -= 1
    return prompt if stop == len(prompt.ids) else Prompt(prompt.ids[:stop])


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
