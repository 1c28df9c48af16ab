"""How vectors are written, and the heads that some come from."""

from __future__ import annotations

import base64
from array import array
from collections.abc import Iterator, Sequence
from itertools import accumulate

import msgspec

from adapters.package.head import PackageHead
from adapters.quoting import quote
from server.adapter_key import AdapterKey
from server.api.context import ServerContext
from server.api.job import Prompt
from server.api.pooling.numbers import packed_numbers
from server.api.pooling.run import Binary, PooledOutputs
from server.api.pooling.wire import VectorBody
from server.errors import InvalidRequestError

MAX_HEADER = 48 * 1024  # bytes: what the usual clients read of one, with some to spare


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
