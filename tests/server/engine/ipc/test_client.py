"""Everything an EngineClient promises, with a real engine on a tiny base in a thread."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest

from adapters.errors import AdapterError, PackageError
from server.config import EngineConfig
from server.engine.engine import Engine
from server.engine.engine_loop import SteppableEngine, build_engine
from server.engine.ipc.buffers import MAX_PENDING
from server.engine.messages import EngineInfo, FinishReason, FromEngine, StepOutputs
from server.errors import EngineStartError, EngineUnavailableError
from tests.server.engine.ipc.clients import answer, config_for, key, request, until
from tests.server.engine.ipc.local_client import LocalEngineClient
from tests.server.keys import key_of
from tests.server.live import slow_steps

LONG = 400


@pytest.fixture
async def client(tiny_base: Path) -> AsyncIterator[LocalEngineClient]:
    made = LocalEngineClient(config_for(tiny_base))
    await made.start()
    yield made
    await until(lambda: made.stats.num_running == made.stats.num_waiting == 0)
    await made.close()


async def test_start_tells_what_runs(client: LocalEngineClient) -> None:
    assert client.ready
    assert client.info.vocab_size == 320
    assert client.info.quantization == "none"
    assert client.info.max_model_len == 512


async def test_a_stream_ends_once_and_reports_each_token(client: LocalEngineClient) -> None:
    outputs = [output async for output in client.submit(request("r", max_tokens=5))]
    assert [len(output.token_ids) for output in outputs] == [1] * 5
    assert [output.finish_reason for output in outputs] == [None] * 4 + [FinishReason.LENGTH]


async def test_requests_run_beside_each_other(client: LocalEngineClient) -> None:
    alone = await answer(client, "alone")
    together = await asyncio.gather(*(answer(client, f"r{i}") for i in range(8)))
    assert together == [alone] * 8
    assert client.stats.batch_requests > client.stats.steps


async def test_adapters_answer_differently(client: LocalEngineClient, tiny_adapters: Mapping[str, Path]) -> None:
    package = tiny_adapters["lora-r8"]
    a = key_of("a", package)
    loaded = await client.load_adapter(a, package)
    assert (loaded.key, loaded.kind) == (a, "lora")
    assert client.resident == {a}
    base, adapted = await asyncio.gather(answer(client, "base"), answer(client, "adapted", a))
    assert base != adapted
    await client.unload_adapter(a)
    assert client.resident == frozenset()
    await until(lambda: client.stats.adapters_resident == 0)


async def test_a_refused_adapter_says_why(client: LocalEngineClient, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(PackageError, match="adapter_config"):
        await client.load_adapter(key("bad"), tmp_path)
    assert client.resident == frozenset()


async def test_a_load_asked_for_twice_runs_once(client: LocalEngineClient, tiny_adapters: Mapping[str, Path]) -> None:
    path = tiny_adapters["lora-r4"]
    a = key_of("a", path)
    first, second = await asyncio.gather(client.load_adapter(a, path), client.load_adapter(a, path))
    assert first is second


async def test_an_unknown_adapter_is_an_error_of_the_request(client: LocalEngineClient) -> None:
    outputs = [output async for output in client.submit(request("r", key("nobody")))]
    assert outputs[-1].finish_reason is FinishReason.ERROR
    assert "nobody@1" in (outputs[-1].error or "")


async def test_leaving_early_aborts(client: LocalEngineClient) -> None:
    with slow_steps():
        stream = client.submit(request("r", max_tokens=LONG))
        await anext(stream)
        assert client.stats.num_running == 1
        await stream.aclose()
        await until(lambda: client.stats.num_running == 0)
    assert client.stats.kv_blocks_used == 0
    assert client.stats.steps < LONG


async def test_a_reader_that_stalls_loses_nothing(client: LocalEngineClient) -> None:
    stream = client.submit(request("r", max_tokens=LONG))
    await until(lambda: client.stats.steps > 0 and client.stats.num_running == 0)
    assert stream.buffered <= MAX_PENDING < LONG
    tokens = [token async for output in stream for token in output.token_ids]
    assert tokens == await answer(client, "again", max_tokens=LONG)


async def test_every_step_is_observed(client: LocalEngineClient) -> None:
    seen: list[StepOutputs] = []
    client.on_step = seen.append
    await answer(client, "r", max_tokens=6)
    await until(lambda: sum(len(output.token_ids) for step in seen for output in step.outputs) == 6)
    assert seen[-1].stats == client.stats


async def test_a_failing_observer_disturbs_nobody(client: LocalEngineClient) -> None:
    reported: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))

    def fail(_: StepOutputs) -> None:
        raise RuntimeError("an observer's mistake")

    client.on_step = fail
    assert len(await answer(client, "r", max_tokens=6)) == 6
    await until(lambda: len(reported) >= 6)
    client.on_step = None


async def test_closing_ends_what_is_outstanding(tiny_base: Path) -> None:
    client = LocalEngineClient(config_for(tiny_base))
    await client.start()
    with slow_steps():
        stream = client.submit(request("r", max_tokens=LONG))
        await anext(stream)
        await client.close()
    assert not client.ready
    with pytest.raises(EngineUnavailableError):
        async for _ in stream:
            pass
    with pytest.raises(EngineUnavailableError):
        client.submit(request("late"))
    with pytest.raises(EngineUnavailableError):
        await client.load_adapter(key("a"), tiny_base)
    await client.unload_adapter(key("a"))  # it is gone: nothing to wait for
    await client.close()


async def test_start_failure_has_the_engines_reason(tmp_path: Path) -> None:
    client = LocalEngineClient(config_for(tmp_path))
    with pytest.raises(EngineStartError, match="it holds no config"):
        await client.start()
    assert not client.ready
    await client.close()


async def test_an_engine_that_breaks_ends_requests_and_loads(
    tiny_base: Path, tiny_adapters: Mapping[str, Path]
) -> None:
    broken = asyncio.Event()

    class Breaking(Engine):
        def step(self) -> list[FromEngine]:
            if broken.is_set():
                raise MemoryError("no more")
            return super().step()

    def build(config: EngineConfig) -> tuple[SteppableEngine, EngineInfo]:
        engine, info = build_engine(config)
        assert isinstance(engine, Engine)
        engine.__class__ = Breaking
        return engine, info

    client = LocalEngineClient(config_for(tiny_base), build=build)
    await client.start()
    with slow_steps():
        stream = client.submit(request("r", max_tokens=LONG))
        await anext(stream)
        broken.set()
        with pytest.raises(EngineUnavailableError):
            async for _ in stream:
                pass
    with pytest.raises((EngineUnavailableError, AdapterError)):
        await client.load_adapter(key("a"), tiny_adapters["lora-r4"])
    assert not client.ready
    await client.close()
