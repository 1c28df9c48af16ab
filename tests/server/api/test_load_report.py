"""The header that tells load balancers how loaded a server is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.server.live import Live, live_server

HEADER = "endpoint-load-metrics"
TEXT = {"prompt": "who?", "max_tokens": 1}
INFERENCE = {"authorization": "Bearer one"}


def header(live: Live, path: str, body: dict[str, Any], **headers: str) -> str | None:
    with live.http() as http:
        answer = http.post(path, json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    told: str | None = answer.headers.get(HEADER)
    return told


@pytest.mark.parametrize(
    ("path", "body"),
    [("/v1/completions", TEXT), ("/v1/completions", {**TEXT, "stream": True}), ("/v1/embeddings", {"input": "a"})],
)
def test_formats(server: Live, path: str, body: dict[str, Any]) -> None:
    told = header(server, path, body, **{f"{HEADER}-format": "JSON"})
    assert told is not None
    metrics = json.loads(told.removeprefix("JSON "))["named_metrics"]
    assert 0 <= metrics.pop("kv_cache_usage_perc") <= 1
    assert set(metrics) == {"num_requests_running", "num_requests_waiting"}
    text = header(server, path, body, **{f"{HEADER}-format": "text"})
    assert text is not None
    assert text.startswith("TEXT named_metrics.kv_cache_usage_perc=")
    for none in ({}, {f"{HEADER}-format": "BIN"}):
        assert header(server, path, body, **none) is None


@pytest.fixture(scope="module")
def guarded(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with live_server(base, tmp_path_factory.mktemp("data"), api_key=["one"], admin_key=["two"], force_usage=True) as it:
        yield it


def test_only_for_those_who_may_read_metrics(guarded: Live) -> None:
    with guarded.http(authorization="Bearer two") as http:
        made = http.post("/v1/keys", json={"name": "x", "scopes": ["inference"]}).json()
    wanted = {f"{HEADER}-format": "JSON"}
    assert header(guarded, "/v1/completions", TEXT, **wanted, **INFERENCE) is not None
    assert header(guarded, "/v1/completions", TEXT, **wanted, authorization=f"Bearer {made['key']}") is None


def test_usage_in_every_chunk(guarded: Live) -> None:
    body = {"prompt": "who?", "max_tokens": 3, "ignore_eos": True, "stream": True}
    with guarded.http(**INFERENCE) as http:
        lines = http.post("/v1/completions", json=body).text.split("\n\n")
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks][-1] == 3
    assert chunks[-1]["choices"] == []
