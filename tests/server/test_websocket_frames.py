from __future__ import annotations

import pytest

from server.websocket_frames import CLOSE, PING, TEXT, TOO_BIG, FrameError, FrameReader, accept_key, close_frame, frame


def sent(opcode: int, payload: bytes, *, final: bool = True, mask: bytes = b"\x01\x02\x03\x04") -> bytes:
    """A frame as clients send it."""
    size = len(payload)
    length = bytes([0x80 | size]) if size < 126 else bytes([0x80 | 126]) + size.to_bytes(2, "big")
    masked = bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))
    return bytes([(0x80 if final else 0) | opcode]) + length + mask + masked


def test_the_handshake_of_the_standard() -> None:
    assert accept_key("dGhlIHNhbXBsZSBub25jZQ==") == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


@pytest.mark.parametrize("step", [1, 3, 10_000])
def test_messages_however_they_are_cut(step: int) -> None:
    data = sent(TEXT, b"hello") + sent(TEXT, b"a" * 300) + sent(TEXT, b"x", final=False)
    data += sent(PING, b"!") + sent(0, b"y") + sent(CLOSE, b"")
    reader = FrameReader(1000)
    found: list[tuple[int, bytes]] = []
    for at in range(0, len(data), step):
        found += reader.feed(data[at : at + step])
    assert found == [(TEXT, b"hello"), (TEXT, b"a" * 300), (PING, b"!"), (TEXT, b"xy"), (CLOSE, b"")]


@pytest.mark.parametrize(
    "data",
    [
        frame(TEXT, b"not masked"),
        sent(0, b"x"),
        sent(TEXT, b"x", final=False) + sent(TEXT, b"y"),
        sent(PING, b"x", final=False),
        sent(PING, b"x" * 126),
        sent(0x3, b"x"),
        b"\xff" + sent(TEXT, b"x")[1:],
        sent(TEXT, b"x" * 101),
        sent(TEXT, b"x" * 60, final=False) + sent(0, b"y" * 60),
    ],
)
def test_refuses_what_is_no_message(data: bytes) -> None:
    with pytest.raises(FrameError):
        list(FrameReader(100).feed(data))


@pytest.mark.parametrize(("size", "head"), [(1, 2), (126, 4), (70_000, 10)])
def test_writes_frames_of_every_size(size: int, head: int) -> None:
    assert len(frame(TEXT, b"x" * size)) == head + size
    assert close_frame(TOO_BIG, "why").endswith(b"\x03\xf1why")
