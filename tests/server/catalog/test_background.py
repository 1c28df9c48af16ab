"""Work that outlives its caller."""

from __future__ import annotations

import asyncio

import pytest

from server.catalog.background import Background
from server.errors import UnknownModelError


async def test_work_goes_on_when_its_caller_leaves() -> None:
    background, gate, done = Background(), asyncio.Event(), []

    async def work() -> None:
        await gate.wait()
        done.append(True)

    caller = asyncio.create_task(background.to_the_end(work()))
    await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    gate.set()
    await background.settle()
    assert done == [True]


async def test_only_unexpected_ends_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    background = Background()

    async def fail(error: Exception) -> None:
        raise error

    background.spawn(fail(UnknownModelError("expected")))
    background.spawn(fail(OSError("the disk is gone")))
    await background.settle()
    assert "the disk is gone" in caplog.text
    assert "expected" not in caplog.text


async def test_close_cancels_what_runs() -> None:
    background = Background()
    task = background.spawn(asyncio.Event().wait())
    await background.close()
    assert task.cancelled()
