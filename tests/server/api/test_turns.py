"""Work that holds the event loop: one piece at a time, and the loop is others' in between."""

from __future__ import annotations

import asyncio
import time
from itertools import pairwise

import pytest

from server.api.turns import Turns

PIECE = 0.03


async def test_the_loop_is_free_after_each_piece_for_as_long_as_it_took() -> None:
    turns, held = Turns(), list[tuple[float, float]]()

    async def work() -> None:
        async with turns.take():
            began = time.perf_counter()
            time.sleep(PIECE)
            held.append((began, time.perf_counter()))

    await asyncio.gather(*(work() for _ in range(4)))
    assert all(later[0] - earlier[1] >= 0.9 * PIECE for earlier, later in pairwise(held))


async def test_a_turn_ends_with_an_error_and_with_whoever_leaves() -> None:
    turns = Turns()
    with pytest.raises(ValueError, match="wrong"):
        async with turns.take():
            raise ValueError("wrong")

    async def wait_for_a_turn() -> None:
        async with turns.take():
            pass

    async with turns.take():
        waiting = asyncio.create_task(wait_for_a_turn())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
    await asyncio.wait_for(wait_for_a_turn(), 10)
