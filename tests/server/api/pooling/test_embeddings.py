"""/v1/embeddings: the numbers of transformers and peft, in every form that clients ask for."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from tests import oracle
from tests.bounds import HIDDEN
from tests.factory import make_tokenizer
from tests.server.api.support import BASE, MAX_LEN, error_of
from tests.server.engine.ipc.fragile import Fragile, build_fragile
from tests.server.engine.ipc.local_client import RestartingLocalClient
from tests.server.live import Live, live_server

SIZE = 64
TEXTS = ["a", "The quick brown fox jumps over the lazy dog. " * 3, "hotswap ünïcode"]


def ids_of(text: str) -> list[int]:
    ids: list[int] = make_tokenizer().encode(text)
    return ids


def pooled(base: Path, package: Path | None, ids: list[int], pooling: str = "last") -> Tensor:
    hidden = oracle.hidden(base, package, ids)
    return {"mean": hidden.mean(0), "last": hidden[-1], "cls": hidden[0]}[pooling]


def vectors(server: Live, **body: Any) -> Tensor:
    response = server.post("/v1/embeddings", {"model": BASE, **body})
    assert response.status_code == 200, response.text
    data = response.json()["data"]
    assert [entry["index"] for entry in data] == list(range(len(data)))
    return torch.tensor([entry["embedding"] for entry in data])


@pytest.mark.parametrize("pooling", ["mean", "last", "cls"])
@pytest.mark.parametrize("name", [None, "lora", "prefix", "prompt"])
def test_numbers_are_those_of_peft_alone(
    server: Live, base: Path, packages: dict[str, Path], name: str | None, pooling: str
) -> None:
    found = vectors(server, model=name or BASE, input=TEXTS, pooling=pooling, normalize=False)
    for text, vector in zip(TEXTS, found, strict=True):
        want = pooled(base, packages[name] if name else None, ids_of(text), pooling)
        torch.testing.assert_close(vector, want, rtol=0, atol=HIDDEN)


def test_the_openai_client_reads_them(client: openai.OpenAI, base: Path, packages: dict[str, Path]) -> None:
    answer = client.embeddings.create(model="lora", input=TEXTS)  # in base64, as it asks for by itself
    assert (answer.object, answer.model) == ("list", "lora")
    tokens = sum(len(ids_of(text)) for text in TEXTS)
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (tokens, tokens)
    plain = client.embeddings.create(model="lora", input=TEXTS, encoding_format="float")
    for text, entry, same in zip(TEXTS, answer.data, plain.data, strict=True):
        want = normalize(pooled(base, packages["lora"], ids_of(text)), dim=0)
        torch.testing.assert_close(torch.tensor(entry.embedding), want, rtol=0, atol=HIDDEN)
        assert np.array_equal(np.array(entry.embedding, np.float32), np.array(same.embedding, np.float32))
    short = client.embeddings.create(model="lora", input=TEXTS[1], dimensions=10)
    want = normalize(pooled(base, packages["lora"], ids_of(TEXTS[1]))[:10], dim=0)
    torch.testing.assert_close(torch.tensor(short.data[0].embedding), want, rtol=0, atol=HIDDEN)


def test_token_ids_and_conversations(server: Live, base: Path) -> None:
    ids = [ids_of(text) for text in TEXTS]
    as_text = vectors(server, input=TEXTS)
    torch.testing.assert_close(vectors(server, input=ids), as_text, rtol=0, atol=HIDDEN)
    torch.testing.assert_close(vectors(server, input=ids[1]), as_text[1:2], rtol=0, atol=HIDDEN)
    messages = [{"role": "user", "content": "who?"}]
    rendered = make_tokenizer().apply_chat_template(messages, tokenize=False)
    found = vectors(server, messages=messages, normalize=False)
    torch.testing.assert_close(found[0], pooled(base, None, ids_of(rendered)), rtol=0, atol=HIDDEN)
    cut = vectors(server, input=TEXTS[1], truncate_prompt_tokens=7, normalize=False)
    torch.testing.assert_close(cut[0], pooled(base, None, ids[1][-7:]), rtol=0, atol=HIDDEN)


def test_base64_is_little_endian_float32(server: Live) -> None:
    body = {"model": BASE, "input": "abc", "encoding_format": "base64"}
    text = server.post("/v1/embeddings", body).json()["data"][0]["embedding"]
    numbers = np.frombuffer(base64.b64decode(text), "<f4")
    assert numbers.shape == (SIZE,)
    assert abs(np.linalg.norm(numbers) - 1) < 1e-6


@pytest.fixture(scope="module")
def small(base: Path, packages: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server whose steps and caps are small."""
    engine = {"max_num_batched_tokens": 48, "max_num_seqs": 8}
    with live_server(
        base,
        tmp_path_factory.mktemp("small"),
        adapters=[(name, str(packages[name])) for name in ("lora", "prefix", "prompt")],
        engine=engine,
        max_pooled_inputs=60,
        max_pooled_numbers=1000,
        max_waiting_requests=40,
    ) as live:
        yield live
        live.wait_idle()


def test_long_prompts_in_small_steps_beside_generation(small: Live, base: Path, packages: dict[str, Path]) -> None:
    names = [BASE, "lora", "prefix", "prompt"]
    text = "0123456789" * 30
    asked = [(name, pooling) for name in names for pooling in ("mean", "last", "cls")]
    with ThreadPoolExecutor(len(asked) + len(names)) as pool:
        generating = [
            pool.submit(small.post, "/v1/completions", {"model": n, "prompt": "go", "max_tokens": 64, "temperature": 0})
            for n in names
        ]
        found = list(
            pool.map(lambda a: vectors(small, model=a[0], input=text, pooling=a[1], normalize=False)[0], asked)
        )
    for (name, pooling), vector in zip(asked, found, strict=True):
        want = pooled(base, packages.get(name), ids_of(text), pooling)
        torch.testing.assert_close(vector, want, rtol=0, atol=HIDDEN)
    assert all(response.result().status_code == 200 for response in generating)


def test_long_lists_are_split_and_bounded(small: Live, base: Path) -> None:
    inputs = [f"text {i}" for i in range(60)]
    found = vectors(small, input=inputs, dimensions=16, normalize=False)
    for text, vector in zip(inputs, found, strict=True):
        torch.testing.assert_close(vector, pooled(base, None, ids_of(text))[:16], rtol=0, atol=HIDDEN)
    too_many = error_of(small.post("/v1/embeddings", {"model": BASE, "input": [*inputs, "one more"]}))
    assert (too_many["param"], too_many["code"]) == ("input", "array_above_max_length")
    too_large = error_of(small.post("/v1/embeddings", {"model": BASE, "input": inputs}))
    assert "--max-pooled-numbers" in too_large["message"]


def test_a_long_list_outlives_its_engine(base: Path, packages: dict[str, Path], tmp_path: Path) -> None:
    make_engine = partial(RestartingLocalClient, build=build_fragile)
    body: dict[str, Any] = {"model": "lora", "input": [f"{i} words" * 9 for i in range(40)], "pooling": "mean"}
    with live_server(base, tmp_path, adapters=[("lora", str(packages["lora"]))], make_engine=make_engine) as live:
        whole = vectors(live, **body)
        Fragile.doomed.set()
        torch.testing.assert_close(vectors(live, **body), whole, rtol=0, atol=HIDDEN)
        assert live.context.engine.restarts == 1  # type: ignore[attr-defined]
        live.wait_idle()


def test_work_ends_when_its_client_leaves(small: Live) -> None:
    body = {"model": BASE, "input": ["0123456789" * 150] * 60, "dimensions": 4}
    with small.http() as http, pytest.raises(httpx.ReadTimeout):
        http.post("/v1/embeddings", json=body, timeout=0.05)
    small.wait_idle()
    assert small.on_loop(small.context.limiter.active) == 0


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({"input": []}, "empty"),
        ({"input": ""}, "empty"),
        ({"input": ["a", ""]}, "empty"),
        ({"input": [[1], []]}, "empty"),
        ({"input": 3}, "text"),
        ({"input": [1, "a"]}, "text"),
        ({"input": {"a": 1}}, "text"),
        ({}, "input"),
        ({"input": "a", "messages": [{"role": "user", "content": "a"}]}, "not both"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
        ({"input": "a", "dimensions": 65}, "64"),
        ({"input": "a", "pooling": "median"}, "pooling"),
        ({"input": [5, 320]}, "vocabulary"),
        ({"input": [5, -1]}, "input"),
        ({"input": "a" * (MAX_LEN + 1)}, "maximum context length"),
    ],
)
def test_what_cannot_be_answered_is_refused(server: Live, body: dict[str, Any], word: str) -> None:
    assert word in error_of(server.post("/v1/embeddings", {"model": BASE, **body}))["message"]


def test_unknown_models_and_metrics(server: Live) -> None:
    assert error_of(server.post("/v1/embeddings", {"model": "nobody", "input": "a"}), 404)["code"] == "model_not_found"
    labels = {"model": BASE, "adapter": "lora", "version": "1"}
    registry = server.context.metrics.registry

    def counts() -> tuple[float, float]:
        done = registry.get_sample_value("hotswap_requests_total", {**labels, "finish_reason": "stop"}) or 0.0
        return done, registry.get_sample_value("hotswap_e2e_request_latency_seconds_count", labels) or 0.0

    before = counts()
    vectors(server, model="lora", input=["a", "b"])
    assert counts() == (before[0] + 2, before[1] + 2)
