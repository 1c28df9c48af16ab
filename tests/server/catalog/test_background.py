"""Work that outlives its caller."""

from __future__ import annotations

import asyncio

import pytest

from server.catalog.background import Background, Repeated
from server.errors import CatalogUnavailableError, UnknownModelError


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


async def test_what_is_repeated_goes_on_when_it_fails(caplog: pytest.LogCaptureFixture) -> None:
    ends = [CatalogUnavailableError("no answer"), CatalogUnavailableError("none still"), OSError("a fault"), None]
    done = asyncio.Event()

    async def work() -> None:
        if (error := ends.pop(0)) is not None:
            raise error
        done.set()

    repeated = Repeated(work, 0.001, "things wait")
    repeated.start()
    await done.wait()
    await repeated.close()
    assert [record.message for record in caplog.records] == ["things wait: no answer", "things wait"], "told once"


async def test_what_is_repeated_is_woken_and_once_more_while_it_is_done() -> None:
    begun, gate = 0, asyncio.Semaphore(0)

    async def work() -> None:
        nonlocal begun
        begun += 1
        await gate.acquire()

    repeated = Repeated(work, 1e9, "things wait")
    repeated.start()
    await asyncio.sleep(0)
    repeated.wake()
    gate.release()
    gate.release()
    for _ in range(10):
        await asyncio.sleep(0)
    assert begun == 2
    repeated.wake()
    for _ in range(10):
        await asyncio.sleep(0)
    assert begun == 3
    await repeated.close()


async def test_what_is_woken_in_the_moment_of_its_end_ends() -> None:
    async def work() -> None:
        """Nothing."""

    for turns in range(4):  # of the event loop, between the one and the other
        repeated = Repeated(work, 1e9, "things wait")
        repeated.start()
        for _ in range(5):
            await asyncio.sleep(0)
        repeated.wake()
        for _ in range(turns):
            await asyncio.sleep(0)
        await asyncio.wait_for(repeated.close(), 5)
