"""Clients that do not finish what they send, do not take what they asked for, or are too many."""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig

from server import connections
from server.adapter_key import AdapterKey
from server.errors import UnknownModelError
from tests.factory import make_adapter, make_base
from tests.server.api.raw import answer, connect, head, post
from tests.server.api.support import BASE, STEADY
from tests.server.live import Live, live_server, slow_steps, wait_until

TEXT = "/v1/completions"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base with room for long outputs."""
    return make_base(tmp_path_factory.mktemp("connections") / BASE, max_position_embeddings=2048)


@pytest.fixture(scope="module")
def lora(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of that base."""
    config = LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")
    return make_adapter(base, tmp_path_factory.mktemp("packages") / "lora", config, std=0.3)


@pytest.fixture(scope="module")
def hasty(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server with little time and few connections."""
    limits: dict[str, Any] = {"head_seconds": 0.5, "send_seconds": 1.0, "max_connections": 8}
    with live_server(base, tmp_path_factory.mktemp("hasty"), **limits) as live:
        yield live


@pytest.mark.parametrize(
    "sent", [b"GET /v1/models HTTP/1.1\r\nHost: loc", b"G", b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 99]
)
def test_a_head_that_does_not_end(hasty: Live, sent: bytes) -> None:
    with connect(hasty) as sock:
        sock.sendall(sent)
        status, error = answer(sock)
    assert (status, error["code"]) == (408, "head_timeout")


def test_a_connection_that_says_nothing(hasty: Live) -> None:
    with connect(hasty) as sock:
        assert answer(sock) == (0, {})


def test_a_second_head_that_does_not_end(hasty: Live) -> None:
    with connect(hasty) as sock:
        sock.sendall(head("GET", "/health"))
        received = sock.recv(65536)
        while not received.endswith(b'{"status":"ok"}'):
            received += sock.recv(65536)
        sock.sendall(b"GET /health HTTP")
        assert answer(sock)[1]["code"] == "head_timeout"


def test_a_client_that_is_answered_is_not_cut(hasty: Live) -> None:
    """The deadlines are for clients: how long the engine takes, or a stream, is no matter."""
    body = {"model": BASE, "prompt": "x", "max_tokens": 60, **STEADY}
    with slow_steps(), hasty.http() as http:
        assert http.post(TEXT, json=body).elapsed.total_seconds() > 0.5
        with http.stream("POST", TEXT, json=body | {"stream": True}) as response:
            assert list(response.iter_lines())[-2] == "data: [DONE]"


# ---- too many ----


def test_beyond_the_limit_is_a_503(hasty: Live, caplog: pytest.LogCaptureFixture) -> None:
    body = {"model": BASE, "prompt": "x", "max_tokens": 1900, **STEADY}
    with slow_steps(), ExitStack() as stack:
        for _ in range(8):
            stack.enter_context(connect(hasty)).sendall(post(TEXT, body))
        hasty.wait(lambda: hasty.context.admission.active == 8, "all places to be taken")
        for _ in range(20):
            with connect(hasty) as sock:
                sock.sendall(head("GET", "/health"))
                status, error = answer(sock)
            assert (status, error["code"], error["type"]) == (503, "overloaded", "server_error")
    hasty.wait_idle()
    hasty.wait(lambda: _health(hasty) == 200, "room")
    lines = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(lines) <= 2, "any number of refusals is one line"


def test_an_idle_connection_gives_way(hasty: Live) -> None:
    with ExitStack() as stack:
        for _ in range(8):
            sock = stack.enter_context(connect(hasty))
            sock.sendall(head("GET", "/health"))
            assert sock.recv(10) == b"HTTP/1.1 2"
        assert _health(hasty) == 200


def test_who_sends_no_head_gives_way(hasty: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "PROMPT_SECONDS", 0.0)
    with ExitStack() as stack:
        for _ in range(8):
            stack.enter_context(connect(hasty)).sendall(b"GET /v1/models HTTP/1.1\r\nHost: loc")
        for _ in range(5):
            assert _health(hasty) == 200


def _health(server: Live) -> int:
    with connect(server) as sock:
        sock.sendall(head("GET", "/health", Connection="close"))
        return int(sock.recv(65536).split()[1])


# What a process with few descriptors does; in one of its own, because limits cannot be raised again.
FEW = """
import resource, sys
soft, hard, wanted = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
from server.connections import ConnectionLimits
from server.settings import ServerConfig
limits = ConnectionLimits.of(ServerConfig(max_connections=wanted))
soft_now = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
assert limits.connections + 2 * limits.backlog + 128 <= soft_now, limits
print(limits.connections, soft_now)
"""


@pytest.mark.parametrize(
    ("soft", "hard", "wanted", "connections"), [(256, 4096, 1000, 1000), (256, 1024, 5000, 448), (4000, 4000, 10, 10)]
)
def test_connections_leave_descriptors_for_the_rest(soft: int, hard: int, wanted: int, connections: int) -> None:
    argv = [sys.executable, "-c", FEW, *map(str, (soft, hard, wanted))]
    out = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split()
    assert int(out[0]) == connections
    assert int(out[1]) >= soft


# ---- too much at once ----


CHUNKED = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
CHUNKED += b"Transfer-Encoding: chunked\r\n"


@pytest.mark.parametrize(
    "sent",
    [
        CHUNKED + b"\r\n" + b"1\r\n \r\n" * 100_000,
        b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + b"a:\r\n" * 12_000 + b"\r\n",
        CHUNKED + b"Content-Length: 2\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    ],
    ids=["chunks", "headers", "two-lengths"],
)
def test_what_takes_long_to_parse_or_may_mean_two_things_is_refused(hasty: Live, sent: bytes) -> None:
    with connect(hasty) as sock:
        with contextlib.suppress(ConnectionError):  # it may be cut while it sends
            sock.sendall(sent)
        status, error = answer(sock)
    assert (status, error.get("code")) in ((400, "invalid_http"), (0, None))
    assert _health(hasty) == 200


def test_a_pipelined_head_is_bounded_too(hasty: Live) -> None:
    with connect(hasty) as sock:
        sock.sendall(
            head("GET", "/health") + b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + b"a:\r\n" * 600 + b"\r\n"
        )
        received = b""
        while piece := sock.recv(65536):
            received += piece
    assert received.count(b"HTTP/1.1 200") == 1
    assert received.count(b"HTTP/1.1 400") == 1


def test_bodies_in_chunks_of_ordinary_sizes(hasty: Live) -> None:
    body = json.dumps({"model": BASE, "prompt": "x", "max_tokens": 1, "user": "y" * 400_000}).encode()
    for size in (80, 4096, 65536):
        chunks = [body[i : i + size] for i in range(0, len(body), size)]
        sent = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
        with connect(hasty) as sock:
            sock.sendall(CHUNKED + b"Connection: close\r\n\r\n" + sent + b"0\r\n\r\n")
            assert sock.recv(65536).startswith(b"HTTP/1.1 200"), size


def test_answers_that_nobody_takes_are_bounded_together(base: Path, tmp_path: Path) -> None:
    body = {"prompt": "x" * 300_000, "return_token_strs": True}  # over 2 MB of answer each
    with live_server(base, tmp_path, max_unsent_mb=4, send_seconds=60) as live, ExitStack() as stack:
        deaf = [stack.enter_context(connect(live, receive_buffer=4096)) for _ in range(6)]
        for sock in deaf:
            sock.sendall(post("/tokenize", body))
        wait_until(lambda: sum(map(_is_cut, deaf)) >= 3, "the answers that do not fit to be dropped")  # one fits
        assert live.post("/tokenize", body).status_code == 200


def _is_cut(sock: socket.socket) -> bool:
    """Whether the other side is gone, seen without taking anything."""
    try:
        sock.send(b"\r\n", socket.MSG_DONTWAIT)
    except ConnectionError:
        return True
    except BlockingIOError:  # it is there, and reads no more than it writes
        pass
    return False


# ---- no HTTP ----


def ours(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """What the server has logged."""
    return [record for record in caplog.records if record.name.startswith(("server", "uvicorn", "asyncio"))]


@pytest.mark.parametrize(
    "sent",
    [
        b"garbage\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",  # TLS, where none is spoken
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET /\x80 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 300_000,
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
    ids=["garbage", "tls", "two-hosts", "bytes", "length", "long", "chunk"],
)
def test_what_is_no_http_gets_an_error_and_one_line(hasty: Live, sent: bytes, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with connect(hasty) as sock:
        sock.sendall(sent)
        status, error = answer(sock)
    assert (status, error["code"]) == (400, "invalid_http")
    hasty.wait(lambda: bool(ours(caplog)), "a line")
    assert [(line.name, line.__dict__["fields"]["status"]) for line in ours(caplog)] == [("server.requests", 400)]


@pytest.mark.parametrize("rest", [b"zz\r\n", b"5\r\nhelloXX"])
def test_garbage_behind_an_answer_is_no_traceback(hasty: Live, rest: bytes, caplog: pytest.LogCaptureFixture) -> None:
    with connect(hasty) as sock:
        sock.sendall(head("GET", "/v1/nothing", Transfer_Encoding="chunked"))
        assert sock.recv(10) == b"HTTP/1.1 4"
        sock.sendall(rest)
        while sock.recv(65536):
            pass
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_an_upgrade_is_answered_and_logged_once(hasty: Live, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with hasty.http(Upgrade="websocket", Connection="upgrade") as http:
        assert http.get("/v1/models").status_code == 200
    hasty.wait(lambda: bool(ours(caplog)), "a line")
    assert [record.name for record in ours(caplog)] == ["server.requests"]


# ---- deaf readers ----


def deaf(server: Live, body: dict[str, Any]) -> socket.socket:
    """A client that asks and never reads."""
    sock = connect(server, receive_buffer=2048)
    sock.sendall(post(TEXT, body))
    return sock


LONG = {"prompt": "x", "max_tokens": 60, "n": 64, "ignore_eos": True, "logprobs": 5}


def test_who_does_not_read_takes_no_place_from_others(base: Path, tmp_path: Path, lora: Path) -> None:
    limits: dict[str, Any] = {"max_waiting_requests": 64, "engine": {"max_num_seqs": 64}}
    body = {"model": "lora", **LONG, "stream": True}
    with live_server(base, tmp_path, adapters=[("lora", str(lora))], **limits) as live, ExitStack() as stack:
        admission = live.context.admission
        with slow_steps():
            for _ in range(2):
                stack.enter_context(deaf(live, body))
            live.wait(lambda: admission.active == 128, "all places to be taken")
        live.wait(lambda: not admission.active, "the engine to end its work")
        assert admission.unread, "they have not been read"
        assert live.post(TEXT, {"model": BASE, **LONG, "n": 100, "max_tokens": 2}).status_code == 200
        with live.http() as http:
            assert http.get("/v1/adapters/lora").json()["running"] == 0
            key = AdapterKey("lora", 1, http.get("/v1/adapters/lora").json()["digest"])
            assert http.delete("/v1/adapters/lora").status_code == 200
            live.wait(lambda: not _known(live, key), "the version to leave")
    live.wait_idle()


def _known(server: Live, key: AdapterKey) -> bool:
    """Whether a version is kept, be it only to drain."""
    try:
        server.context.registry.leased(key)
    except UnknownModelError:
        return False
    return True


@pytest.mark.parametrize("stream", [True, False])
def test_who_takes_nothing_is_cut(hasty: Live, stream: bool) -> None:
    body = {"model": BASE, **LONG, "stream": stream}
    with deaf(hasty, body) as sock:
        with slow_steps():
            hasty.wait(lambda: hasty.context.admission.active > 0, "the request to run")
        hasty.wait(lambda: not _connections(sock), "the connection to be cut")
        hasty.wait_idle()


def _connections(sock: socket.socket) -> bool:
    """Whether the other end is still open: a reset shows without reading."""
    try:
        sock.send(b" ")
    except ConnectionError:
        return False
    return True


def test_a_slow_reader_is_served_to_the_end(hasty: Live) -> None:
    body = {"model": BASE, **LONG, "n": 32, "stream": True}
    received = b""
    with deaf(hasty, body) as sock:
        while not received.endswith(b"0\r\n\r\n"):
            received += (piece := sock.recv(200_000))
            assert piece, "cut off"
    events = [line.removeprefix(b"data: ") for line in received.split(b"\n") if line.startswith(b"data: {")]
    tokens = sum(len((json.loads(event)["choices"][0]["logprobs"] or {"tokens": []})["tokens"]) for event in events)
    assert tokens == 32 * 60
