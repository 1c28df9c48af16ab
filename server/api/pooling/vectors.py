"""How vectors are asked of the engine, and how they are written: what of them the adapter's maker decides."""

from __future__ import annotations

import base64
from array import array
from collections.abc import Iterator, Sequence
from itertools import accumulate

import msgspec

from adapters.package.head import PackageHead
from adapters.package.manifest import PooledRef
from adapters.quoting import quote
from server.adapter_key import AdapterKey
from server.api.context import ServerContext
from server.api.job import Prompt
from server.api.pooling.numbers import packed_numbers
from server.api.pooling.run import Binary, PooledOutputs
from server.api.pooling.wire import VectorBody
from server.engine.messages import Pooling, PoolingParams
from server.errors import InvalidRequestError

MAX_HEADER = 48 * 1024  # bytes: what the usual clients read of one, with some to spare


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
    pooling = Pooling(body.pooling) if body.pooling else trained_pooling(context, adapter)
    asked = body.normalize if body.normalize is not None else body.use_activation
    normalize = asked if asked is not None else _normalizes(context, adapter)
    return PoolingParams(pooling=pooling, dimensions=body.dimensions or 0, normalize=normalize)


def usual_params(context: ServerContext, adapter: AdapterKey | None, dimensions: int | None) -> PoolingParams:
    """How hidden states become embeddings of so many ``dimensions``, where nothing else is said of them.

    Raises InvalidRequestError as ``trained_pooling`` does.
    """
    pooling = trained_pooling(context, adapter)
    return PoolingParams(pooling=pooling, dimensions=dimensions or 0, normalize=_normalizes(context, adapter))


def _normalizes(context: ServerContext, adapter: AdapterKey | None) -> bool:
    trained = _trained(context, adapter)
    return trained is None or trained.normalize


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


def encoded_vector(vector: bytes, body: VectorBody) -> str | Iterator[float]:
    """The numbers as ``body`` asks for them in JSON: packed, in base64, or themselves."""
    if body.encoding_format == "base64":
        return base64.b64encode(packed_numbers(vector, body.embed_dtype, body.endianness)).decode("ascii")
    return iter(numbers_of(vector))


def raw_vectors(body: VectorBody, outputs: PooledOutputs, shapes: Sequence[Sequence[int]]) -> Binary:
    """All vectors, packed as ``body`` asks, one behind the other; where each is, of which shape, says a header.

    Raises InvalidRequestError where that would be longer than clients read.
    """
    packed = [packed_numbers(vector, body.embed_dtype, body.endianness) for vector in outputs.vectors]
    if body.encoding_format == "bytes_only":
        return Binary(packed, {})
    ends = list(accumulate(map(len, packed)))
    data = [
        {
            "index": index,
            "embed_dtype": body.embed_dtype or "float32",
            "endianness": body.endianness or "native",
            "start": end - len(packed[index]),
            "end": end,
            "shape": shape,
        }
        for index, (end, shape) in enumerate(zip(ends, shapes, strict=True))
    ]
    job, usage = outputs.job, outputs.usage()
    told = {"id": job.id, "created": job.created, "model": job.model, "data": data, "usage": usage}
    header = msgspec.json.encode(told).decode("latin-1")
    if len(header) > MAX_HEADER:
        raise InvalidRequestError(
            f"encoding_format: where each of {len(data)} vectors is would fill a header of {len(header)} bytes, and "
            f"clients read {MAX_HEADER}; ask for `bytes_only`, or send fewer inputs",
            param="encoding_format",
        )
    return Binary(packed, {"metadata": header})


def numbers_of(vector: bytes) -> array[float]:
    """The numbers of a vector."""
    found = array("f")
    found.frombytes(vector)
    return found
