"""Requests written by hand, for what no ordinary client sends."""

from __future__ import annotations

import contextlib
import json
import socket
from typing import Any
from urllib.parse import urlsplit

from tests.server.live import DEADLINE, Live


def connect(server: Live, *, receive_buffer: int = 0) -> socket.socket:
    """A connection; with a small ``receive_buffer`` the server notices soon that nothing is read."""
    address = urlsplit(server.url)
    assert address.hostname is not None
    assert address.port is not None
    sock = socket.socket()
    if receive_buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    sock.settimeout(DEADLINE)
    sock.connect((address.hostname, address.port))
    return sock


def head(method: str, path: str, **headers: object) -> bytes:
    """The head of a request."""
    lines = {"Host": "localhost", **{name.replace("_", "-"): value for name, value in headers.items()}}
    fields = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"{method} {path} HTTP/1.1\r\n{fields}\r\n".encode()


def post(path: str, body: Any, **headers: object) -> bytes:
    """A whole JSON request."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return head("POST", path, Content_Type="application/json", Content_Length=len(data), **headers) + data


def answer(sock: socket.socket) -> tuple[int, dict[str, Any]]:
    """Status and error of an answer that ends with the connection; 0 where there is none."""
    received = b""
    with contextlib.suppress(ConnectionError):
        while piece := sock.recv(65536):
            received += piece
    if not received:
        return 0, {}
    first, _, body = received.partition(b"\r\n\r\n")
    assert body, received
    error: dict[str, Any] = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return int(first.split()[1]), error
