"""The outputs of one request: order, bound, errors, and what leaving early does."""

from __future__ import annotations

import asyncio
import gc

import pytest

from server.engine.ipc.buffers import OutputBuffer, OutputStream
from server.engine.messages import FinishReason, RequestOutput
from server.errors import EngineUnavailableError


def output(*tokens: int, last: bool = False) -> RequestOutput:
    reason = FinishReason.LENGTH if last else None
    return RequestOutput(request_id="r", token_ids=list(tokens), finish_reason=reason)


class Made:
    def __init__(self, max_pending: int = 256) -> None:
        self.abandoned = 0
        self.buffer = OutputBuffer(max_pending)
        self.stream: OutputStream | None = OutputStream(self.buffer, self._abandon)

    def _abandon(self) -> None:
        self.abandoned += 1

    async def take(self) -> RequestOutput:
        assert self.stream is not None
        return await anext(self.stream)


async def test_outputs_come_in_order_and_end_after_the_terminal_one() -> None:
    made = Made()
    made.buffer.put(output(1))
    made.buffer.put(output(2, last=True))
    assert made.stream is not None
    assert [o.token_ids async for o in made.stream] == [[1], [2]]
    with pytest.raises(StopAsyncIteration):
        await made.take()
    await made.stream.aclose()
    assert made.abandoned == 0


async def test_a_waiting_reader_is_woken() -> None:
    made = Made()
    reading = asyncio.create_task(made.take())
    await asyncio.sleep(0)
    made.buffer.put(output(1))
    assert (await reading).token_ids == [1]
    assert made.stream is not None
    await made.stream.aclose()


async def test_a_stalled_reader_gets_everything_joined() -> None:
    made = Made(max_pending=4)
    for token in range(100):
        made.buffer.put(output(token, last=token == 99))
        assert len(made.buffer) <= 4
    assert made.stream is not None
    got = [o async for o in made.stream]
    assert [token for o in got for token in o.token_ids] == list(range(100))
    assert got[-1].finish_reason is FinishReason.LENGTH


async def test_an_error_comes_after_what_was_there() -> None:
    made = Made()
    made.buffer.put(output(1))
    made.buffer.fail(EngineUnavailableError("gone"))
    assert (await made.take()).token_ids == [1]
    with pytest.raises(EngineUnavailableError, match="gone"):
        await made.take()


async def test_closing_early_abandons_once() -> None:
    made = Made()
    assert made.stream is not None
    await made.stream.aclose()
    await made.stream.aclose()
    assert made.abandoned == 1
    with pytest.raises(StopAsyncIteration):
        await made.take()


async def test_a_cancelled_wait_abandons() -> None:
    made = Made()
    reading = asyncio.create_task(made.take())
    await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert made.abandoned == 1


async def test_a_dropped_stream_abandons() -> None:
    made = Made()
    made.stream = None
    gc.collect()
    await asyncio.sleep(0)
    assert made.abandoned == 1
