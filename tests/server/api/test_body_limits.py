"""Bodies that are too large, too slow, too many, or that nobody may send."""

from __future__ import annotations

import asyncio
import json
import select
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from starlette.types import Message, Receive, Scope, Send

from server.api import body_limits
from server.api.body_limits import BodyBudget, BodyLimit, BodyRule
from server.api.error_responses import ApiError
from tests.server.api.raw import answer, connect, head, post
from tests.server.api.support import BASE, STEADY, error_of
from tests.server.live import Live, live_server, slow_steps

TEXT = "/v1/completions"
HUGE = 64 << 20


@pytest.fixture(scope="module")
def strict(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """Keys, little time and little room for bodies."""
    folder = tmp_path_factory.mktemp("strict")
    limits: dict[str, Any] = {
        "body_seconds": 2.0,
        "max_bodies_mb": 1.0,
        "max_body_mb": 1.0,
        "api_key": "sk",
        "admin_key": "root",
    }
    with live_server(base, folder, **limits) as live:
        yield live


def padded(nbytes: int, **body: Any) -> bytes:
    """A sound request of that size."""
    data = json.dumps({"model": BASE, "prompt": "x", "max_tokens": 1, **body}).encode()
    return data + b" " * (nbytes - len(data))


def pour(sock: socket.socket, nbytes: int) -> int:
    """Send until the server hangs up or that much is sent; returns how much was."""
    sent, piece = 0, b"x" * 65536
    try:
        while sent < nbytes:
            sent += sock.send(piece)
    except ConnectionError:
        pass
    return sent


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", TEXT),
        ("POST", "/v1/chat/completions"),
        ("POST", "/tokenize"),
        ("PUT", "/v1/adapters/x"),
        ("POST", "/v1/adapters"),
        ("PATCH", "/v1/adapters/x"),
        ("POST", "/v1/adapters/x/rollback"),
    ],
)
@pytest.mark.parametrize("framing", [{"Content_Length": HUGE}, {"Transfer_Encoding": "chunked"}])
def test_without_a_key_no_body_is_waited_for(strict: Live, method: str, path: str, framing: dict[str, Any]) -> None:
    with connect(strict) as sock:
        sock.sendall(head(method, path, Authorization="Bearer wrong", **framing))
        assert sock.recv(65536).startswith(b"HTTP/1.1 401 ")


@pytest.mark.parametrize("path", [TEXT, "/v1/adapters", "/v1/nothing", "/health"])
def test_little_is_taken_from_who_may_not_send_it(strict: Live, path: str) -> None:
    with connect(strict) as sock:
        sock.sendall(head("POST", path, Authorization="Bearer wrong", Content_Length=HUGE))
        assert pour(sock, HUGE) < HUGE // 2
        assert sock.recv(65536).startswith(b"HTTP/1.1 4")


async def test_ordinary_clients_read_that_a_body_is_too_large(strict: Live) -> None:
    headers = {"Authorization": "Bearer sk"}
    async with httpx.AsyncClient(base_url=strict.url, headers=headers, timeout=60) as http:
        for nbytes in (2 << 20, 30 << 20):
            error_of(await http.post(TEXT, content=b"x" * nbytes), 413)


@pytest.mark.parametrize("nbytes", [1 << 16, 1 << 20, 20 << 20])
def test_ordinary_clients_read_the_refusal_of_a_body(strict: Live, nbytes: int) -> None:
    with strict.http(Authorization="Bearer wrong") as http:
        assert error_of(http.post(TEXT, content=b"x" * nbytes), 401)["code"] == "invalid_api_key"
        pieces = (b"x" * 65536 for _ in range(nbytes // 65536))
        error_of(http.post(TEXT, content=pieces), 401)
        error_of(http.put("/v1/adapters/x", files={"f": b"x" * nbytes}), 401)
    client = openai.OpenAI(base_url=f"{strict.url}/v1", api_key="wrong", max_retries=0)
    with client, pytest.raises(openai.AuthenticationError):
        client.completions.create(model=BASE, prompt="x" * nbytes)


def test_a_refusal_of_a_small_body_keeps_the_connection(strict: Live) -> None:
    with connect(strict) as sock:
        for _ in range(3):
            sock.sendall(post(TEXT, {"model": BASE}, Authorization="Bearer wrong"))
            received = b""
            while not received.endswith(b"}}"):
                received += sock.recv(65536)
            assert received.startswith(b"HTTP/1.1 401 ")
            assert b"connection: close" not in received.lower()


def test_a_route_that_takes_no_body_does_not_wait_for_one(strict: Live) -> None:
    with connect(strict) as sock:
        sock.sendall(head("GET", "/health", Content_Length=HUGE))
        assert sock.recv(65536).startswith(b"HTTP/1.1 200 ")
        assert pour(sock, HUGE) < HUGE // 2


def test_a_body_that_stops_coming(strict: Live) -> None:
    with connect(strict) as sock:
        sock.sendall(post(TEXT, padded(5000), Authorization="Bearer sk")[:-10])
        status, error = answer(sock)
    assert (status, error["code"]) == (408, "body_timeout")


def test_a_body_that_trickles(strict: Live) -> None:
    with connect(strict) as sock:
        sock.sendall(head("POST", TEXT, Authorization="Bearer sk", Content_Length=5000))
        for _ in range(2000):
            sock.sendall(b" ")
            if select.select([sock], [], [], 0.05)[0]:
                break
        assert sock.recv(65536).startswith(b"HTTP/1.1 408 ")


class Sender:
    """A client of ``limited`` that sends as it is told."""

    def __init__(self, limited: BodyLimit, announced: int) -> None:
        self._messages: asyncio.Queue[Message] = asyncio.Queue()
        headers = [(b"content-length", str(announced).encode())]
        scope: Scope = {"type": "http", "method": "POST", "path": "/", "headers": headers}
        self.request = asyncio.create_task(limited(scope, self._messages.get, self._ignore))

    async def send(self, nbytes: int, *, more: bool) -> None:
        """Some of the body, which the server has read when this returns, or its answer is there."""
        self._messages.put_nowait({"type": "http.request", "body": b" " * nbytes, "more_body": more})
        while not self._messages.empty():
            await asyncio.sleep(0)
        await asyncio.sleep(0)

    async def _ignore(self, message: Message) -> None:
        pass


async def read_all(_scope: Scope, receive: Receive, _send: Send) -> None:
    while (await receive()).get("more_body"):
        pass


def limited(budget: BodyBudget) -> BodyLimit:
    return BodyLimit(read_all, lambda _method, _path: BodyRule(8 << 20), budget, seconds=60.0)


async def test_all_bodies_share_one_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_limits, "SILENT_SECONDS", 1000.0)
    server = limited(budget := BodyBudget(1 << 20))
    first, second, small = (Sender(server, nbytes) for nbytes in (700_000, 700_000, 50_000))
    await first.send(600_000, more=True)
    await second.send(600_000, more=True)
    with pytest.raises(ApiError, match="too many large requests") as refused:
        await second.request
    assert (refused.value.status, refused.value.code) == (503, "overloaded")
    assert refused.value.headers["Retry-After"]
    await small.send(50_000, more=False)
    await small.request
    await first.send(100_000, more=False)
    await first.request
    assert not budget.held
    again = Sender(server, 700_000)
    await again.send(700_000, more=False)
    await again.request


async def test_the_silent_give_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_limits, "SILENT_SECONDS", 0.0)
    server = limited(budget := BodyBudget(1 << 20))
    longest, silent, busy = (Sender(server, 500_000) for _ in range(3))
    await longest.send(450_000, more=True)
    await silent.send(450_000, more=True)
    await busy.send(500_000, more=False)
    await busy.request
    with pytest.raises(ApiError) as cut:
        await longest.request
    assert (cut.value.status, cut.value.code) == (408, "body_timeout")
    await silent.send(50_000, more=False)
    await silent.request
    assert not budget.held


def test_a_body_counts_no_longer_than_it_takes_to_read(strict: Live) -> None:
    with strict.http(Authorization="Bearer sk") as http:
        body = padded(700_000, stream=True, max_tokens=1500, **STEADY)
        with slow_steps(), http.stream("POST", TEXT, content=body) as running:
            assert running.status_code == 200
            with strict.http(Authorization="Bearer sk") as other:
                assert other.post(TEXT, content=padded(700_000)).status_code == 200


def test_an_upload_is_not_counted(strict: Live) -> None:
    with strict.http(Authorization="Bearer root") as http:
        response: httpx.Response = http.put("/v1/adapters/x", files={"f": b"x" * (4 << 20)})
    assert "archive" in error_of(response)["message"]


def test_parts_without_a_name_count_too(strict: Live) -> None:
    parts = b"--b\r\nX: y\r\n\r\n\r\n" * 65 + b"--b--\r\n"
    header = b"--b\r\n" + b"X: " + b"y" * 100_000 + b"\r\n\r\n\r\n--b--\r\n"
    with strict.http(Authorization="Bearer root") as http:
        for content in (parts, header):
            headers = {"content-type": "multipart/form-data; boundary=b"}
            response = http.put("/v1/adapters/x", content=content, headers=headers)
            assert error_of(response)["code"] == "invalid_multipart"
