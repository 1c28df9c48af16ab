"""Types of numbers in which vectors are sent: those of torch, to the last bit."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from server.api.pooling.numbers import NumberType, packed_numbers
from tests.server.api.support import BASE, error_of
from tests.server.live import Live

TYPES: dict[NumberType, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "fp8_e4m3": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}
TEXTS = ["a", "The quick brown fox"]


@pytest.mark.parametrize("name", TYPES)
def test_are_rounded_as_torch_does(name: NumberType) -> None:
    random = torch.randn(20_000, generator=torch.Generator().manual_seed(0)) * torch.logspace(-8, 5, 20_000)
    halves = torch.arange(-4096, 4096) / 2.0**9  # many lie in the middle of two
    numbers = torch.cat([random, halves, torch.tensor([0.0, -0.0, 448.0, 464.0, 465.0, 61439.0, 61440.0, -7e4])])
    packed = packed_numbers(numbers.numpy().astype("<f4").tobytes(), name, "little")
    want = numbers.to(TYPES[name])
    assert packed == want.view(torch.uint8).numpy().tobytes()
    size = want.element_size()
    swapped = np.frombuffer(packed, f"V{size}").view(np.uint8).reshape(-1, size)[:, ::-1]
    assert packed_numbers(numbers.numpy().tobytes(), name, "big") == swapped.tobytes()


@pytest.mark.parametrize(("path", "field"), [("/v1/embeddings", "embedding"), ("/pooling", "data")])
def test_answers_may_be_bytes(server: Live, path: str, field: str) -> None:
    body: dict[str, Any] = {"model": BASE, "input": TEXTS}
    plain = server.post(path, body).json()
    packed = server.post(path, {**body, "encoding_format": "bytes", "embed_dtype": "float16", "endianness": "big"})
    assert packed.headers["content-type"] == "application/octet-stream"
    metadata = msgspec.json.decode(packed.headers["metadata"])
    assert metadata["usage"]["prompt_tokens"] == plain["usage"]["prompt_tokens"]
    assert metadata["model"] == plain["model"]
    for entry, item in zip(plain["data"], metadata["data"], strict=True):
        assert (item["index"], item["embed_dtype"], item["endianness"]) == (entry["index"], "float16", "big")
        found = np.frombuffer(packed.content[item["start"] : item["end"]], ">f2")
        assert list(found.shape) == item["shape"]
        assert np.array_equal(found, np.array(entry[field], "f4").astype("f2"))
    alone = server.post(path, {**body, "encoding_format": "bytes_only"})
    assert "metadata" not in alone.headers
    assert len(alone.content) == sum(len(entry[field]) for entry in plain["data"]) * 4


def test_each_token_has_a_row(server: Live) -> None:
    body = {"model": BASE, "input": TEXTS, "task": "token_embed"}
    rows = server.post("/pooling", body).json()["data"]
    packed = server.post("/pooling", {**body, "encoding_format": "bytes"})
    for entry, item in zip(rows, msgspec.json.decode(packed.headers["metadata"])["data"], strict=True):
        found = np.frombuffer(packed.content[item["start"] : item["end"]], "<f4").reshape(item["shape"])
        assert np.array_equal(found, np.array(entry["data"], "f4"))


def test_a_header_has_its_limit(server: Live) -> None:
    body = {"model": BASE, "input": [[1]] * 1000, "encoding_format": "bytes"}
    assert "bytes_only" in error_of(server.post("/v1/embeddings", body))["message"]
    assert server.post("/v1/embeddings", {**body, "encoding_format": "bytes_only"}).status_code == 200
