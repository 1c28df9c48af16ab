"""Counting who holds what."""

from __future__ import annotations

import asyncio

from server.catalog.registry import LeaseTable


async def test_unused_waits_for_the_last_lease() -> None:
    table: LeaseTable[str] = LeaseTable()
    first, second = table.acquire("a"), table.acquire("a")
    waiting = asyncio.create_task(table.unused("a"))
    first.release()
    first.release()  # counts once
    await asyncio.sleep(0)
    assert not waiting.done()
    second.release()
    await asyncio.wait_for(waiting, 10)


async def test_a_lease_taken_again_meanwhile_is_waited_for() -> None:
    table: LeaseTable[str] = LeaseTable()
    first = table.acquire("a")
    waiting = asyncio.create_task(table.unused("a"))
    await asyncio.sleep(0)
    first.release()
    second = table.acquire("a")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not waiting.done()
    second.release()
    await asyncio.wait_for(waiting, 10)


async def test_other_keys_do_not_matter() -> None:
    table: LeaseTable[str] = LeaseTable()
    with table.acquire("a") as held, table.acquire(None) as nothing:
        assert (held, nothing) == ("a", None)
        await asyncio.wait_for(table.unused("b"), 10)
    await asyncio.wait_for(table.unused("a"), 10)
