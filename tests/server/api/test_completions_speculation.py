"""Drafted tokens over HTTP: answers and streams are the same, and metrics count them."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.server.api.support import BASE, events
from tests.server.live import Live

TEXT = "/v1/completions"
ANSWER: dict[str, Any] = {"model": BASE, "temperature": 0, "ignore_eos": True, "max_tokens": 60}
BODIES: list[dict[str, Any]] = [
    {},
    {"model": "lora", "logprobs": 3},
    {"model": "prefix", "echo": True, "logprobs": 0},
    {"model": "prompt", "n": 2, "temperature": 0.5, "seed": 3},
    {"stop": ["e", "a"], "min_tokens": 4, "logprobs": 1},
    {"stop": ["th"], "include_stop_str_in_output": True},
    {"ignore_eos": False, "logit_bias": {"72": 3}},
    {"frequency_penalty": 1.0},
]


def choices(server: Live, body: dict[str, Any]) -> tuple[Any, Any]:
    response = server.post(TEXT, body)
    assert response.status_code == 200, response.text
    return response.json()["choices"], response.json()["usage"]["completion_tokens"]


def drafted(server: Live) -> tuple[float, float]:
    with server.http() as http:
        families = text_string_to_metric_families(http.get("/metrics").text)
    samples = [sample for family in families for sample in family.samples]
    names = ("hotswap_drafted_tokens_total", "hotswap_accepted_tokens_total")
    count, accepted = (sum(s.value for s in samples if s.name == name) for name in names)
    return count, accepted


@pytest.mark.parametrize("body", BODIES, ids=str)
def test_drafted_tokens_change_no_answer(server: Live, body: dict[str, Any]) -> None:
    asked = {**ANSWER, "prompt": "the cat and the hat and the cat and the hat and the", **body}
    plain, count = choices(server, {**asked, "speculation": False})
    for speculation in (True, None):
        assert choices(server, {**asked, "speculation": speculation}) == (plain, count)
    if not body.get("echo"):
        chunks = [chunk["choices"][0] for chunk in events(server, TEXT, asked)]
        for choice in plain:
            own = [chunk for chunk in chunks if chunk["index"] == choice["index"]]
            assert "".join(chunk["text"] for chunk in own) == choice["text"]
            assert own[-1]["finish_reason"] == choice["finish_reason"]


def test_they_are_counted(server: Live) -> None:
    asked = {**ANSWER, "prompt": "abc" * 30, "max_tokens": 200}
    before = drafted(server)
    choices(server, {**asked, "speculation": False})
    assert drafted(server) == before
    for _ in range(3):
        choices(server, asked)
    count, accepted = (after - first for after, first in zip(drafted(server), before, strict=True))
    assert count >= accepted > 0
