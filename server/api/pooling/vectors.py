"""How vectors are asked of the engine, and how they are written: what of them the adapter's maker decides."""

from __future__ import annotations

import base64
from array import array
from collections.abc import Iterator

from adapters.package.head import PackageHead
from adapters.package.manifest import PooledRef
from adapters.quoting import quote
from server.adapter_key import AdapterKey
from server.api.context import ServerContext
from server.api.job import Prompt
from server.api.pooling.wire import VectorBody
from server.engine.messages import Pooling, PoolingParams
from server.errors import InvalidRequestError


def trained_pooling(context: ServerContext, adapter: AdapterKey | None) -> Pooling:
    """Which hidden states an adapter or the base was trained with; the last, as is usual, where nobody says.

    Raises InvalidRequestError where the base was trained with what is not served.
    """
    trained, beside = _trained(context, adapter), context.sentence_model
    if beside is not None and beside.problem and trained is beside.pooled:
        raise InvalidRequestError(
            f"this base's vectors are not served as sentence-transformers makes them: {beside.problem}; ask "
            "/v1/embeddings with `pooling` for vectors of its hidden states, or serve another base",
            param="model",
        )
    return Pooling(trained.pooling) if trained is not None and trained.pooling else Pooling.LAST


def _trained(context: ServerContext, adapter: AdapterKey | None) -> PooledRef | None:
    """What an adapter's manifest says of its vectors; else, without a head, what stands beside the base."""
    version = context.registry.leased(adapter) if adapter is not None else None
    if version is not None and version.manifest is not None and version.manifest.pooled is not None:
        return version.manifest.pooled
    beside = context.sentence_model
    return None if beside is None or (version is not None and version.head is not None) else beside.pooled


def embedding_params(context: ServerContext, body: VectorBody, adapter: AdapterKey | None, size: int) -> PoolingParams:
    """How hidden states become embeddings: as ``body`` says, else as the adapter was trained, else as is usual."""
    if body.dimensions is not None and body.dimensions > size:
        raise InvalidRequestError(
            f"dimensions is {body.dimensions}, and the vectors of this base have {size}; ask for no more",
            param="dimensions",
        )
    trained = _trained(context, adapter)
    pooling = Pooling(body.pooling) if body.pooling else trained_pooling(context, adapter)
    asked = body.normalize if body.normalize is not None else body.use_activation
    normalize = asked if asked is not None else trained is None or trained.normalize
    return PoolingParams(pooling=pooling, dimensions=body.dimensions or 0, normalize=normalize)


def prompt_of(context: ServerContext, body: VectorBody) -> str:
    """What goes before each text. Raises InvalidRequestError where the base has no prompt of that name."""
    if body.prompt_name is None:
        return ""
    prompts = context.sentence_model.prompts if context.sentence_model is not None else {}
    if body.prompt_name not in prompts:
        has = f"those of this base are {', '.join(map(quote, sorted(prompts)))}" if prompts else "this base has none"
        raise InvalidRequestError(
            f"there is no prompt {quote(body.prompt_name)}: {has}; put what you mean before each text yourself",
            param="prompt_name",
        )
    return prompts[body.prompt_name]


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
