"""What goes between the server and a process that renders a template: frames of JSON, four bytes of length before each.

A job is the messages and the template's other arguments, in Python's JSON, which knows integers of any size. An answer
is strict: what a template writes must be text.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

import msgspec

_HEADER_BYTES = 4


class Failure(StrEnum):
    """Why there is no text: what the template said, what Python said of it, or a limit."""

    REFUSED = "refused"
    BROKEN = "broken"
    MEMORY = "memory"
    LENGTH = "length"


class Answer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The text, or why there is none."""

    text: str = ""
    failure: Failure | None = None
    reason: str = ""


def encode_job(messages: Sequence[dict[str, Any]], arguments: Mapping[str, Any]) -> bytes:
    """One render."""
    return json.dumps([messages, arguments]).encode()


def decode_job(payload: bytes) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Messages and arguments of one render."""
    messages, arguments = json.loads(payload)
    return messages, arguments


def send_frame(sock: socket.socket, payload: bytes) -> None:
    """Send one frame. Raises OSError, TimeoutError among them."""
    sock.sendall(len(payload).to_bytes(_HEADER_BYTES, "big") + payload)


def recv_frame(sock: socket.socket, deadline: float | None = None, max_bytes: int = 1 << 31) -> bytes | None:
    """The next frame; None when the other end closed. Raises OSError, TimeoutError after monotonic's ``deadline``."""
    header = _recv(sock, _HEADER_BYTES, deadline)
    if header is None:
        return None
    size = int.from_bytes(header, "big")
    if size > max_bytes:
        raise OSError("the frame is too long")
    return _recv(sock, size, deadline)


def _recv(sock: socket.socket, count: int, deadline: float | None) -> bytes | None:
    out = bytearray()
    while len(out) < count:
        if deadline is not None:
            sock.settimeout(max(deadline - time.monotonic(), 1e-3))
        got = sock.recv(min(count - len(out), 1 << 20))
        if not got:
            return None
        out += got
    return bytes(out)
