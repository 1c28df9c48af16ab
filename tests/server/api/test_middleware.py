from __future__ import annotations

import logging

import pytest

from tests.server.live import Live


@pytest.mark.parametrize("given", ["abc-123", "x" * 128])
def test_a_sound_request_id_is_kept(server: Live, given: str) -> None:
    with server.http(**{"x-request-id": given}) as http:
        assert http.get("/health").headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["a b", 'x"}{', "x" * 129, ""])
def test_another_one_is_replaced(server: Live, given: str) -> None:
    with server.http(**{"x-request-id": given}) as http:
        ids = {http.get("/health").headers["x-request-id"] for _ in range(2)}
    assert given not in ids
    assert len(ids) == 2


def test_one_line_per_request(server: Live, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "server.requests")
    body = {"model": "lora", "prompt": "secret prompt", "max_tokens": 4, "ignore_eos": True}
    server.post("/v1/completions", body)
    server.post("/v1/completions", body | {"stream": True})
    server.post("/v1/completions", body | {"n": 0})
    server.wait(lambda: len(caplog.records) == 3, "three lines")
    lines = [record.__dict__["fields"] for record in caplog.records]
    assert [line["status"] for line in lines] == [200, 200, 400]
    for line in lines[:2]:
        assert (line["model"], line["adapter"], line["completion_tokens"]) == ("lora", "lora@1", 4)
        assert line["seconds"] > 0
    assert "secret" not in str(lines)


def test_probes_are_not_logged(server: Live, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "server.requests")
    with server.http() as http:
        http.get("/health")
        http.get("/v1/models")
    server.wait(lambda: bool(caplog.records), "a line")
    assert [record.__dict__["fields"]["path"] for record in caplog.records] == ["/v1/models"]
