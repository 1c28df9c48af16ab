"""Answers of any size, written in parts: to encode or to send tens of megabytes at once holds the interpreter.

What is not yet sent stays in parts, and is counted with what the client has not taken.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

PART_BYTES = 256 * 1024  # a fraction of a millisecond to copy
ROWS_AT_ONCE = 256  # of a list; a row is packed, or a short text
UNSENT = "unsent"  # in a request's state: bytes of its answer that the application still holds


def packed(value: Any) -> msgspec.Raw:
    """``value`` as it will stand in a JSON answer.

    Answers of many small objects are packed row by row: while one large one is encoded, or the collector looks at all
    that it is made of, nothing else runs, other threads or not.
    """
    return msgspec.Raw(msgspec.json.encode(value))


def json_parts(value: Any) -> list[bytes]:
    """The JSON of plain data and of what is ``packed``, in parts of about PART_BYTES; iterators become lists."""
    parts, pending, size = list[bytes](), list[bytes](), 0
    for piece in _pieces(value):
        pending.append(piece)
        size += len(piece)
        if size >= PART_BYTES:
            parts.append(b"".join(pending))
            pending, size = [], 0
    return [*parts, b"".join(pending)] if pending else parts


def _pieces(value: Any) -> Iterator[bytes]:
    if isinstance(value, dict):
        yield from _between(b"{", (_field(key, of) for key, of in value.items()), b"}")
    elif isinstance(value, (list, Iterator)):
        yield from _between(b"[", _items(value), b"]")
    else:
        yield msgspec.json.encode(value)


def _between(first: bytes, members: Iterable[Iterable[bytes]], last: bytes) -> Iterator[bytes]:
    yield first
    for i, member in enumerate(members):
        if i:
            yield b","
        yield from member
    yield last


def _field(key: str, value: Any) -> Iterator[bytes]:
    yield msgspec.json.encode(key) + b":"
    yield from _pieces(value)


def _items(values: Iterable[Any]) -> Iterator[Iterable[bytes]]:
    """Objects one by one, rows some at once."""
    rest = iter(values)
    for first in rest:
        if isinstance(first, dict):
            yield _pieces(first)
        else:
            yield [msgspec.json.encode([first, *islice(rest, ROWS_AT_ONCE)])[1:-1]]


def counted(parts: list[bytes], state: dict[str, Any]) -> Iterator[bytes]:
    """``parts`` one by one, and in the ``state`` of their request how much is left of them."""
    left = sum(map(len, parts))
    for part in parts:
        left -= len(part)
        state[UNSENT] = left
        yield part


class LargeAnswer(Response):
    """A JSON answer in ``parts``, sent one after the other as the client takes them."""

    def __init__(self, parts: list[bytes], headers: dict[str, str] | None = None) -> None:
        self._parts = parts
        self.status_code = 200
        self.background = None
        length = str(sum(map(len, parts)))
        self.init_headers({"content-type": "application/json", "content-length": length, **(headers or {})})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for part in counted(self._parts, scope["state"]):
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
