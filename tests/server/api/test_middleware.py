from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator

import pytest
from fastapi import FastAPI
from starlette.responses import StreamingResponse
from starlette.types import Message, Scope

from server.api import error_responses
from server.api.middleware import RequestLog
from server.traces import PassedTraces
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


async def _chunks() -> AsyncIterator[bytes]:
    yield b"begun"
    raise RuntimeError("secret")


def broken(answers: list[tuple[str, str, int]]) -> FastAPI:
    """An application with faults of its own."""
    app = FastAPI(openapi_url=None)

    @app.get("/fails")
    async def fails() -> None:
        raise RuntimeError("secret")

    @app.get("/stream")
    async def stream() -> StreamingResponse:
        return StreamingResponse(_chunks())

    error_responses.install(app)
    app.add_middleware(RequestLog, answered=lambda *answer: answers.append(answer), traces=PassedTraces())
    return app


@pytest.mark.parametrize(("path", "status"), [("/fails", 500), ("/stream", 200)])
async def test_a_fault_of_ours_is_one_line_with_its_traceback(
    path: str, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    scope: Scope = {"type": "http", "method": "GET", "path": path, "query_string": b"", "headers": []}
    answers: list[tuple[str, str, int]] = []
    start, *rest = await messages(broken(answers), scope)
    assert answers == [("GET", path, status)]
    body = b"".join(message["body"] for message in rest)
    assert start["status"] == status
    assert b"secret" not in body
    if status == 500:
        assert json.loads(body)["error"]["code"] == "internal_error"
        assert b"x-request-id" in dict(start["headers"])
    (line,) = caplog.records
    assert line.exc_info is not None
    assert "secret" in str(line.exc_info[1])
    assert line.__dict__["fields"]["status"] == status
    assert line.__dict__["fields"]["error"] == "internal_error"


async def messages(app: FastAPI, scope: Scope) -> list[Message]:
    """What an application sends to a client that sends nothing and does not leave."""
    sent: list[Message] = []

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return sent


@pytest.mark.parametrize(
    "body",
    [
        b'{"model": "tiny", "prompt": "x", "temperature": NaN}',
        b'{"model": "tiny", "prompt": "x", "logit_bias": {"5": Infinity}}',
        b'{"model": "tiny", "prompt": "x", "top_p": 1e999}',
        b"[" * 100_000,
        b'{"model": "tiny", "prompt": "\\ud800"}',
        b"\xff\xfe",
        b"",
    ],
)
def test_a_request_that_fails_is_one_line(server: Live, body: bytes, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with server.http() as http:
        headers = {"content-type": "application/json"}
        response = http.post("/v1/completions", content=body, headers=headers)
    assert response.status_code == 400, response.text

    def lines() -> list[logging.LogRecord]:
        return [record for record in caplog.records if record.name.startswith(("server", "uvicorn", "asyncio"))]

    server.wait(lambda: bool(lines()), "a line")
    (line,) = lines()
    assert (line.name, line.exc_info) == ("server.requests", None)
