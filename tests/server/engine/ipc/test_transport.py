"""Frames over real socket pairs, both sides."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator

import pytest

from server.adapter_key import AdapterKey
from server.engine.ipc import transport
from server.engine.ipc.transport import (
    FrameTooLargeError,
    TransportError,
    decode_from_engine,
    decode_to_engine,
    encode,
    frame,
    read_frame,
    recv_frame,
)
from server.engine.messages import Abort, AdapterUnloaded, EngineRequest, SamplingParams, Shutdown

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    left, right = socket.socketpair()
    with left, right:
        yield left, right


def test_messages_keep_their_type_and_content() -> None:
    key = AdapterKey("a", 3, "f" * 64)
    sampling = SamplingParams(max_tokens=3, logit_bias={7: -1.5}, stop_token_ids=(1, 2))
    for message in (
        EngineRequest(request_id="r", prompt_ids=[1], sampling=sampling, adapter=key),
        Abort("r"),
        Shutdown(),
    ):
        assert decode_to_engine(encode(message)[4:]) == message
    assert decode_from_engine(encode(AdapterUnloaded(key))[4:]) == AdapterUnloaded(key)


def test_a_message_for_the_other_side_is_refused() -> None:
    payload = encode(Abort("r"))[4:]
    with pytest.raises(TransportError, match="not a message of an engine"):
        decode_from_engine(payload)
    with pytest.raises(TransportError, match="not a message to an engine"):
        decode_to_engine(b"\xc1 not msgpack")


def test_blocking_side_reads_frames_larger_than_any_buffer(pair: Pair) -> None:
    payloads = [b"", b"x", bytes(range(256)) * 20_000]
    sender = threading.Thread(target=pair[0].sendall, args=(b"".join(map(frame, payloads)),))
    sender.start()
    assert [recv_frame(pair[1]) for _ in payloads] == payloads
    sender.join()


def test_blocking_side_tells_a_clean_end_from_a_broken_frame(pair: Pair) -> None:
    pair[0].sendall(frame(b"whole"))
    pair[0].shutdown(socket.SHUT_WR)
    assert recv_frame(pair[1]) == b"whole"
    assert recv_frame(pair[1]) is None


@pytest.mark.parametrize("sent", [b"\x00\x00", frame(b"12345678")[:7], frame(b"1234")[:4]])
def test_blocking_side_refuses_a_frame_cut_short(pair: Pair, sent: bytes) -> None:
    pair[0].sendall(sent)
    pair[0].shutdown(socket.SHUT_WR)
    with pytest.raises(TransportError, match="inside a frame"):
        recv_frame(pair[1])


def test_too_large_a_frame_is_neither_sent_nor_read(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    pair[0].sendall(frame(b"123456789"))
    monkeypatch.setattr(transport, "MAX_FRAME_BYTES", 8)
    with pytest.raises(FrameTooLargeError, match="9 bytes"):
        frame(b"123456789")
    with pytest.raises(TransportError, match="exceeds the limit of 8"):
        recv_frame(pair[1])


async def test_asyncio_side_reads_the_same_frames(pair: Pair) -> None:
    payloads = [b"", b"x", bytes(range(256)) * 20_000]
    reader, writer = await asyncio.open_unix_connection(sock=pair[1])
    data = b"".join(frame(payload) for payload in payloads)
    sending = asyncio.create_task(asyncio.to_thread(pair[0].sendall, data))
    assert [await read_frame(reader) for _ in payloads] == payloads
    await sending
    pair[0].shutdown(socket.SHUT_WR)
    assert await read_frame(reader) is None
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize("sent", [b"\x00\x00", frame(b"12345678")[:7], frame(b"1234")[:4]])
async def test_asyncio_side_refuses_a_frame_cut_short(pair: Pair, sent: bytes) -> None:
    reader, writer = await asyncio.open_unix_connection(sock=pair[1])
    pair[0].sendall(sent)
    pair[0].shutdown(socket.SHUT_WR)
    with pytest.raises(TransportError, match="inside a frame"):
        await read_frame(reader)
    writer.close()
    await writer.wait_closed()
