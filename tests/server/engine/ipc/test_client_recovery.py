"""Requests that outlive engines, and those that no engine survives, with real engines on a tiny base in threads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import msgspec
import pytest

from server.engine.ipc.client import EngineClient
from server.engine.messages import EngineRequest
from server.errors import EngineUnavailableError, RequestEndsEngineError
from tests.server.engine.ipc.clients import PROMPT, answer, config_for, request, until
from tests.server.engine.ipc.fragile import POISONS, Fragile, build_fragile
from tests.server.engine.ipc.local_client import RestartingLocalClient
from tests.server.keys import key_of
from tests.server.live import slow_steps

LONG = 300


@pytest.fixture
async def client(tiny_base: Path) -> AsyncIterator[RestartingLocalClient]:
    made = RestartingLocalClient(config_for(tiny_base, max_num_seqs=8), build=build_fragile)
    await made.start()
    yield made
    await until(lambda: made.stats.num_running == made.stats.num_waiting == 0)
    await made.close()


async def whole(client: EngineClient, request: EngineRequest) -> list[int]:
    """An answer that nobody sees before its end."""
    tokens: list[int] = []

    def restart() -> bool:
        tokens.clear()
        return True

    async for output in client.submit(request, restart=restart):
        tokens += output.token_ids
    return tokens


def poisoned(request_id: str, token: int) -> EngineRequest:
    return msgspec.structs.replace(request(request_id, max_tokens=LONG), prompt_ids=[*PROMPT, token])


def sampled(request_id: str) -> EngineRequest:
    made = request(request_id, max_tokens=LONG)
    return msgspec.structs.replace(made, sampling=msgspec.structs.replace(made.sampling, temperature=1.0, seed=5))


async def test_what_ends_engines_is_told_from_what_runs_beside(
    client: RestartingLocalClient, tiny_adapters: Mapping[str, Path]
) -> None:
    adapter = key_of("a", tiny_adapters["lora-r8"])
    await client.load_adapter(adapter, tiny_adapters["lora-r8"])
    asks = [sampled("s"), request("b", max_tokens=LONG), request("a", adapter, max_tokens=LONG)]
    expected = [await whole(client, ask) for ask in asks]
    poisons = [poisoned(f"p{token}", token) for token in POISONS]
    results = await asyncio.gather(
        *(whole(client, ask) for ask in (asks[0], poisons[1], asks[1], poisons[0], asks[2])), return_exceptions=True
    )
    assert [results[0], results[2], results[4]] == expected
    for result in (results[1], results[3]):
        assert isinstance(result, RequestEndsEngineError)
        assert "the engine ended 4 times while it computed this request" in str(result)
    assert client.restarts == 5, "three with both, the last when one had been cleared; then one with each alone"
    assert await answer(client, "again", adapter) == expected[2][:16]
    await client.unload_adapter(adapter)


async def test_a_reader_chooses_and_a_late_one_has_nothing_to_forget(client: RestartingLocalClient) -> None:
    expected = await whole(client, request("whole", max_tokens=LONG))
    with slow_steps():
        begun, waiting = (client.submit(request(name, max_tokens=LONG)) for name in ("begun", "waiting"))
        await anext(begun)
        Fragile.doomed.set()
        with pytest.raises(EngineUnavailableError, match="can be sent again"):
            async for _ in begun:
                pass
    assert [token async for output in waiting for token in output.token_ids] == expected
    assert (client.restarts, client.resumed) == (1, 1)
