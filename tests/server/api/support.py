"""What the tests of the API ask, and how they read the answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx

from adapters.package.archive import pack
from server.text.tokenizer import TextProcessor
from tests import oracle
from tests.server.live import Live

BASE = "tiny"
MAX_LEN = 2048
STEADY = {"ignore_eos": True, "speculation": False}  # an output that takes its time, a step a token


def error_of(response: httpx.Response, status: int = 400) -> dict[str, Any]:
    """The error of a response, its form checked."""
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == {"error"}
    error: dict[str, Any] = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert "Traceback" not in response.text
    assert "0x" not in response.text
    assert response.headers["x-request-id"]
    return error


def events(server: Live, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The parsed events of a stream; checks the frame around them."""
    with server.http() as http, http.stream("POST", path, json={"stream": True, **body}) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def archive(package: Path, tmp_path: Path) -> bytes:
    pack(package, tmp_path / "package.tar")
    return (tmp_path / "package.tar").read_bytes()


def answer(server: Live, model: str) -> str:
    body = {"model": model, "prompt": "who?", "max_tokens": 8, "temperature": 0, "ignore_eos": True}
    response = server.post("/v1/completions", body)
    assert response.status_code == 200, response.text
    text: str = response.json()["choices"][0]["text"]
    return text


def wanted(base: Path, package: Path | None) -> str:
    text = TextProcessor.load(base)
    return text.decode(
        oracle.greedy(base, package, text.encode("who?", add_special_tokens=True), 8), skip_special_tokens=True
    )
