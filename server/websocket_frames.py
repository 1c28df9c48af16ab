"""WebSocket's frames (RFC 6455), as a server reads and writes them. Knows no connection."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator

TEXT, BINARY, CLOSE, PING, PONG = 0x1, 0x2, 0x8, 0x9, 0xA
NORMAL, GOING_AWAY, PROTOCOL_ERROR, NO_TEXT, BAD_TEXT, TOO_BIG = 1000, 1001, 1002, 1003, 1007, 1009
_CONTINUATION = 0x0
_MOST_CONTROL_BYTES = 125
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class FrameError(Exception):
    """What came is no frame, or too large; ``code`` is what the connection is closed with."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


def accept_key(key: str) -> str:
    """What a server answers to the ``key`` of a handshake."""
    return base64.b64encode(hashlib.sha1(key.encode("latin-1") + _GUID, usedforsecurity=False).digest()).decode()


def frame(opcode: int, payload: bytes = b"") -> bytes:
    """One frame that is a whole message."""
    size = len(payload)
    if size <= _MOST_CONTROL_BYTES:
        head = bytes((0x80 | opcode, size))
    elif size < 2**16:
        head = bytes((0x80 | opcode, 126)) + size.to_bytes(2, "big")
    else:
        head = bytes((0x80 | opcode, 127)) + size.to_bytes(8, "big")
    return head + payload


def close_frame(code: int, reason: str = "") -> bytes:
    """The frame that ends a connection."""
    return frame(CLOSE, code.to_bytes(2, "big") + reason.encode()[: _MOST_CONTROL_BYTES - 2])


class FrameReader:
    """Makes messages of the bytes that a client sends; one may have ``most`` bytes."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._buffer = bytearray()
        self._begun: int | None = None  # the opcode of the message whose parts come
        self._parts: list[bytes] = []

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """The messages that are whole now, with their opcodes. Raises FrameError."""
        self._buffer += data
        while (found := self._frame()) is not None:
            opcode, final, payload = found
            if opcode >= CLOSE:
                yield opcode, payload
                continue
            if (opcode == _CONTINUATION) == (self._begun is None):
                raise FrameError(PROTOCOL_ERROR, "a part of a message out of its turn")
            self._begun = self._begun or opcode
            self._parts.append(payload)
            if sum(map(len, self._parts)) > self._most:
                raise FrameError(TOO_BIG, "the message is too large")
            if final:
                message, whole = self._begun, b"".join(self._parts)
                self._begun, self._parts = None, []
                yield message, whole

    def _frame(self) -> tuple[int, bool, bytes] | None:
        """The next frame: opcode, whether it is the last of its message, payload. None until it is whole."""
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        opcode, final, size, at = buffer[0] & 0x0F, bool(buffer[0] & 0x80), buffer[1] & 0x7F, 2
        if buffer[0] & 0x70 or not buffer[1] & 0x80 or opcode not in (_CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG):
            raise FrameError(PROTOCOL_ERROR, "no frame of a client without extensions")
        if opcode >= CLOSE and (size > _MOST_CONTROL_BYTES or not final):
            raise FrameError(PROTOCOL_ERROR, "a control frame that is large or cut")
        if size > _MOST_CONTROL_BYTES:
            at += 2 if size == 126 else 8
            if len(buffer) < at:
                return None
            size = int.from_bytes(buffer[2:at], "big")
        if size > self._most:
            raise FrameError(TOO_BIG, "the message is too large")
        if len(buffer) < at + 4 + size:
            return None
        payload = _unmasked(bytes(buffer[at + 4 : at + 4 + size]), bytes(buffer[at : at + 4]))
        del buffer[: at + 4 + size]
        return opcode, final, payload


def _unmasked(payload: bytes, mask: bytes) -> bytes:
    size = len(payload)
    repeated = (mask * (size // 4 + 1))[:size]
    return (int.from_bytes(payload, "big") ^ int.from_bytes(repeated, "big")).to_bytes(size, "big")
