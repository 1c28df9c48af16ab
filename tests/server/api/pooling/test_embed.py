"""/v2/embed: the vectors of /v1/embeddings, as Cohere's clients ask for them."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest

from tests.server.api.support import BASE, error_of
from tests.server.live import Live

TEXTS = ["a", "The quick brown fox jumps over the lazy dog."]


@pytest.mark.parametrize("model", [BASE, "lora"])
def test_vectors_come_in_every_type(server: Live, model: str) -> None:
    vectors = [
        np.array(entry["embedding"], "<f4")
        for entry in server.post("/v1/embeddings", {"model": model, "input": TEXTS}).json()["data"]
    ]
    types = ["float", "base64", "ubinary", "binary"]
    body = {"model": model, "texts": TEXTS, "input_type": "search_query", "embedding_types": types}
    told = server.post("/v2/embed", body).json()
    assert list(told["embeddings"]) == types
    assert (told["texts"], told["response_type"]) == (TEXTS, "embeddings_by_type")
    found = [told["embeddings"][kind] for kind in types]
    for vector, plain, packed, unsigned, signed in zip(vectors, *found, strict=True):
        assert np.array_equal(np.array(plain, "<f4"), vector)
        assert base64.b64decode(packed) == vector.tobytes()
        assert np.array_equal(np.unpackbits(np.array(unsigned, "u1")), vector >= 0)
        assert [one - 128 for one in unsigned] == signed
    usage = told["meta"]["billed_units"]["input_tokens"]
    parts = {"model": model, "inputs": [{"content": [{"type": "text", "text": text}]} for text in TEXTS]}
    same = server.post("/v2/embed", {**parts, "output_dimension": 64}).json()
    assert same["embeddings"] == {"float": found[0]}
    assert same["meta"]["billed_units"]["input_tokens"] == usage


def test_long_texts_are_cut_where_it_is_asked(server: Live) -> None:
    whole = server.post("/tokenize", {"model": BASE, "prompt": TEXTS[1]}).json()["tokens"]

    def vector(path: str, **body: Any) -> Any:
        return server.post(path, {"model": BASE, **body}).json()

    for truncate, ids in ("END", whole[:4]), ("START", whole[-4:]):
        cut = vector("/v2/embed", texts=[TEXTS[1]], max_tokens=4, truncate=truncate)
        assert cut["meta"]["billed_units"]["input_tokens"] == 4
        want = vector("/v1/embeddings", input=ids)["data"][0]["embedding"]
        np.testing.assert_allclose(cut["embeddings"]["float"][0], want, rtol=0, atol=1e-6)
    assert server.post("/v2/embed", {"model": BASE, "texts": [TEXTS[1] * 300]}).status_code == 200  # cut, as by Cohere


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"texts": []}, "texts"),
        ({"texts": [""]}, "texts"),
        ({"texts": None}, "texts"),
        ({"images": ["data:"]}, "images"),
        ({"texts": None, "inputs": [{"content": [{"type": "image_url"}]}]}, "inputs[0].content[0].type"),
        ({"embedding_types": ["int8"]}, "embedding_types[0]"),
        ({"embedding_types": ["binary"], "output_dimension": 12}, "embedding_types"),
        ({"output_dimension": 100_000}, "output_dimension"),
        ({"max_tokens": 2, "truncate": "NONE"}, "texts"),
        ({"texts": ["x" * 9000], "truncate": "NONE"}, "texts"),
    ],
)
def test_says_what_is_wrong(server: Live, change: dict[str, Any], param: str) -> None:
    assert error_of(server.post("/v2/embed", {"model": BASE, "texts": TEXTS, **change}))["param"] == param
