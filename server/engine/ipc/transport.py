"""Frames of typed messages over a stream socket: four bytes of length, then msgpack. Never pickle.

One end is blocking (the engine process), the other asyncio (the API process). Knows the messages' types, not what
they are for.
"""

from __future__ import annotations

import asyncio
import socket

import msgspec

from server.engine.messages import FromEngine, ToEngine

HEADER_BYTES = 4
MAX_FRAME_BYTES = 256 * 1024 * 1024  # a full-length prompt with 20 log-probabilities a token is about 40 MB

_encoder = msgspec.msgpack.Encoder()
_to_engine: msgspec.msgpack.Decoder[ToEngine] = msgspec.msgpack.Decoder(ToEngine)
_from_engine: msgspec.msgpack.Decoder[FromEngine] = msgspec.msgpack.Decoder(FromEngine)


class TransportError(Exception):
    """The connection broke inside a frame, or the other end sent something that is no frame."""


class FrameTooLargeError(TransportError):
    """A frame exceeds ``MAX_FRAME_BYTES``; nothing of it was sent."""


def encode(message: ToEngine | FromEngine) -> bytes:
    """One message as a whole frame, header included. Raises FrameTooLargeError."""
    payload = _encoder.encode(message)
    return frame(payload)


def frame(payload: bytes) -> bytes:
    """``payload`` with its length before it. Raises FrameTooLargeError."""
    if len(payload) > MAX_FRAME_BYTES:
        raise FrameTooLargeError(f"a message of {len(payload)} bytes exceeds the limit of {MAX_FRAME_BYTES}")
    return len(payload).to_bytes(HEADER_BYTES, "big") + payload


def decode_to_engine(payload: bytes) -> ToEngine:
    """A message of the API process. Raises TransportError for anything else."""
    try:
        return _to_engine.decode(payload)
    except msgspec.DecodeError as error:
        raise TransportError(f"not a message to an engine: {error}") from error


def decode_from_engine(payload: bytes) -> FromEngine:
    """A message of an engine. Raises TransportError for anything else."""
    try:
        return _from_engine.decode(payload)
    except msgspec.DecodeError as error:
        raise TransportError(f"not a message of an engine: {error}") from error


def recv_frame(sock: socket.socket) -> bytes | None:
    """The next payload from a blocking socket; None when the other end closed between frames.

    Raises TransportError when the connection ends inside a frame, breaks, or announces too large a frame.
    """
    header = _recv_exactly(sock, HEADER_BYTES)
    if not header:
        return None
    if len(header) < HEADER_BYTES:
        raise TransportError("the connection ended inside a frame")
    size = _checked_size(header)
    payload = _recv_exactly(sock, size)
    if len(payload) < size:
        raise TransportError("the connection ended inside a frame")
    return payload


async def read_frame(reader: asyncio.StreamReader) -> bytes | None:
    """As ``recv_frame``, from an asyncio stream."""
    try:
        header = await reader.readexactly(HEADER_BYTES)
    except asyncio.IncompleteReadError as error:
        if not error.partial:
            return None
        raise TransportError("the connection ended inside a frame") from error
    except ConnectionError as error:
        raise TransportError(f"the connection broke: {error}") from error
    try:
        return await reader.readexactly(_checked_size(header))
    except (asyncio.IncompleteReadError, ConnectionError) as error:
        raise TransportError("the connection ended inside a frame") from error


def _recv_exactly(sock: socket.socket, count: int) -> bytes:
    """``count`` bytes, or fewer at the end of the stream."""
    buffer = bytearray(count)
    view = memoryview(buffer)
    received = 0
    while received < count:
        try:
            got = sock.recv_into(view[received:])
        except ConnectionError as error:
            raise TransportError(f"the connection broke: {error}") from error
        if got == 0:
            break
        received += got
    return bytes(view[:received])


def _checked_size(header: bytes) -> int:
    size = int.from_bytes(header, "big")
    if size > MAX_FRAME_BYTES:
        raise TransportError(f"a frame of {size} bytes exceeds the limit of {MAX_FRAME_BYTES}")
    return size
