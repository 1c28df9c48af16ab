"""A real child process with a real engine on a tiny base: service, death, recovery, end."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from adapters.errors import PackageError
from server.adapter_key import AdapterKey
from server.engine.ipc.process_client import ProcessEngineClient, RestartPolicy
from server.engine.ipc.transport import encode
from server.engine.ipc.watchdog import BEAT_SECONDS
from server.engine.messages import EngineFailed, FinishReason, RequestOutput
from server.errors import AdapterFailedError, EngineStartError, EngineUnavailableError
from tests.server.engine.ipc.clients import answer, config_for, key, request, until
from tests.server.keys import key_of

pytestmark = pytest.mark.asyncio(loop_scope="module")
LONG = 400
POLICY = RestartPolicy(first_delay=0.01, quick_failures=20, slow_delay=0.02)
REFUSAL = "no config.json any more"


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def client(tiny_base: Path) -> AsyncIterator[ProcessEngineClient]:
    """One client for all tests here; each leaves it idle."""
    made = ProcessEngineClient(config_for(tiny_base, engine_timeout=4), policy=POLICY)
    await made.start()
    yield made
    pid = made.pid
    await made.close()
    assert pid is not None
    assert not psutil.pid_exists(pid)


async def kill(client: ProcessEngineClient) -> None:
    assert client.pid is not None
    os.kill(client.pid, signal.SIGKILL)
    await until(lambda: client.pid is None)
    assert not client.ready


async def begin(client: ProcessEngineClient, streams: Sequence[AsyncIterator[RequestOutput]]) -> None:
    """Let the engine get so far that each has a token, and leave it stopped: none ends however busy the machine is."""
    assert client.pid is not None
    waiting = [asyncio.ensure_future(anext(stream)) for stream in streams]
    while not all(first.done() for first in waiting):
        os.kill(client.pid, signal.SIGCONT)
        await asyncio.sleep(0.01)
        os.kill(client.pid, signal.SIGSTOP)
        await asyncio.sleep(0.02)  # what it has sent arrives
    for first in waiting:
        first.result()


def recoveries(client: ProcessEngineClient) -> list[tuple[str, float]]:
    """What the client will tell of recoveries."""
    seen: list[tuple[str, float]] = []
    client.outage.on_recovery = lambda stage, seconds: seen.append((stage, seconds))
    return seen


async def test_requests_and_adapters(client: ProcessEngineClient, tiny_adapters: Mapping[str, Path]) -> None:
    assert client.info.num_kv_blocks == client.stats.kv_blocks_total or client.stats.steps == 0
    a = key_of("a", tiny_adapters["prefix-5"])
    loaded = await client.load_adapter(a, tiny_adapters["prefix-5"])
    assert (loaded.kind, loaded.num_virtual_tokens) == ("prefix", 5)
    base, adapted = await asyncio.gather(answer(client, "base"), answer(client, "adapted", a))
    assert base != adapted
    await client.unload_adapter(a)


async def test_errors_of_adapters_keep_their_class(client: ProcessEngineClient, tmp_path: Path) -> None:
    with pytest.raises(PackageError):
        await client.load_adapter(key("bad"), tmp_path)


async def test_leaving_early_aborts_in_the_child(client: ProcessEngineClient) -> None:
    stream = client.submit(request("r", max_tokens=LONG))
    await anext(stream)
    await stream.aclose()
    await until(lambda: client.stats.num_running == 0)
    assert client.stats.kv_blocks_used == 0


async def test_interrupts_are_the_parents_business(client: ProcessEngineClient) -> None:
    pid = client.pid
    assert pid is not None
    os.kill(pid, signal.SIGINT)
    os.kill(pid, signal.SIGTERM)
    assert len(await answer(client, "r", max_tokens=50)) == 50
    assert client.pid == pid


async def test_kill_mid_stream_and_come_back(
    client: ProcessEngineClient, tiny_adapters: Mapping[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    packages = [tiny_adapters[name] for name in ("lora-r8", "prefix-16", "prompt-7")]
    keys = [key_of("a", package, i) for i, package in enumerate(packages, 1)]
    for key_, package in zip(keys, packages, strict=True):
        await client.load_adapter(key_, package)
    before = [await answer(client, f"before-{key_}", key_) for key_ in keys]
    restarts, resumed, seen = client.restarts, client.resumed, recoveries(client)
    untouched = [client.submit(request(f"u{i}", keys[i], max_tokens=LONG)) for i in (2, 0, 1)]
    streams = [client.submit(request(f"s{i}", keys[0], max_tokens=LONG)) for i in range(3)]
    await begin(client, streams)
    streams.append(client.submit(request("of-base", max_tokens=LONG)))  # which overtakes those of one adapter
    await begin(client, streams[-1:])
    await kill(client)
    for stream in streams:
        with pytest.raises(EngineUnavailableError, match="can be sent again"):
            async for _ in stream:
                pass
    with pytest.raises(EngineUnavailableError, match="restarting"):
        client.submit(request("while down"))
    await untouched.pop().aclose()
    await until(lambda: client.pid is not None)
    await kill(client)  # while it starts
    await until(lambda: client.ready)
    assert (client.restarts, client.resumed) == (restarts + 2, resumed + 2)
    assert client.resident == set(keys)
    assert f"left requests of 4 models unfinished: {keys[0]} 4, " in caplog.text
    again = [[token async for output in stream for token in output.token_ids] for stream in untouched]
    assert [len(tokens) for tokens in again] == [LONG, LONG]
    assert [tokens[: len(before[i])] for i, tokens in zip((2, 0), again, strict=True)] == [before[2], before[0]]
    assert [await answer(client, f"after-{key_}", key_) for key_ in keys] == before
    assert [stage for stage, _ in seen] == ["serving", "first_token"]
    assert 0 < seen[0][1] <= seen[1][1]
    await until(lambda: client.stats.num_running == 0)
    assert client.stats.kv_blocks_used == 1  # what the prefix adapter holds
    for key_ in keys:
        await client.unload_adapter(key_)


async def test_a_stopped_engine_is_noticed_killed_and_replaced(
    client: ProcessEngineClient, tiny_adapters: Mapping[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    adapter = key_of("a", tiny_adapters["lora-r8"])
    await client.load_adapter(adapter, tiny_adapters["lora-r8"])
    before = await answer(client, "before", adapter)
    stream = client.submit(request("s", adapter, max_tokens=LONG))
    pid, restarts = client.pid, client.restarts
    assert pid is not None
    await begin(client, [stream])
    with pytest.raises(EngineUnavailableError, match="can be sent again"):
        async for _ in stream:
            pass
    assert not client.ready
    await until(lambda: client.ready)
    assert (client.restarts, client.pid != pid) == (restarts + 1, True)
    assert not psutil.pid_exists(pid)
    assert "nothing was heard of it for 4 s (--engine-timeout)" in caplog.text
    assert await answer(client, "after", adapter) == before
    await client.unload_adapter(adapter)


async def test_a_stop_shorter_than_the_limit_is_no_hang(client: ProcessEngineClient) -> None:
    pid = client.pid
    assert pid is not None
    stream = client.submit(request("s", max_tokens=50))
    outputs = [await anext(stream)]
    os.kill(pid, signal.SIGSTOP)
    await asyncio.sleep(2 * BEAT_SECONDS)  # some beats are missed
    os.kill(pid, signal.SIGCONT)
    outputs += [output async for output in stream]
    assert sum(len(output.token_ids) for output in outputs) == 50
    assert client.pid == pid


async def test_death_during_a_load(client: ProcessEngineClient, tiny_adapters: Mapping[str, Path]) -> None:
    assert client.pid is not None
    os.kill(client.pid, signal.SIGSTOP)  # so that the load cannot be answered before the end
    loading = asyncio.create_task(client.load_adapter(key("late"), tiny_adapters["lora-r4"]))
    await asyncio.sleep(0)
    await kill(client)
    with pytest.raises(EngineUnavailableError, match="while loading"):
        await loading
    await until(lambda: client.ready)
    assert client.resident == frozenset()


async def test_an_adapter_unloaded_while_down_stays_away(
    client: ProcessEngineClient, tiny_adapters: Mapping[str, Path]
) -> None:
    gone, kept = key_of("gone", tiny_adapters["lora-r4"]), key_of("kept", tiny_adapters["lora-r8"])
    await client.load_adapter(gone, tiny_adapters["lora-r4"])
    await client.load_adapter(kept, tiny_adapters["lora-r8"])
    streams = {key_: client.submit(request(str(key_), key_)) for key_ in (gone, kept)}
    await kill(client)
    await client.unload_adapter(gone, force=True)
    assert [output.finish_reason async for output in streams[gone]] == [FinishReason.ABORT]
    await until(lambda: client.ready)
    assert client.resident == {kept}
    assert [output.finish_reason async for output in streams[kept]][-1] is FinishReason.LENGTH
    await until(lambda: client.stats.adapters_resident == 1)
    await client.unload_adapter(kept)


async def test_an_adapter_whose_files_vanished_does_not_keep_the_engine_down(
    client: ProcessEngineClient, tiny_adapters: Mapping[str, Path], tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    here = tmp_path / "here"
    here.symlink_to(tiny_adapters["lora-r4"])
    lost: list[tuple[AdapterKey, str]] = []
    client.on_lost = lambda key, reason: lost.append((key, reason))
    loaded = key_of("lost", here)
    await client.load_adapter(loaded, here)
    here.rename(moved)
    of_lost, of_base = client.submit(request("of lost", loaded)), client.submit(request("of base"))
    await kill(client)
    await until(lambda: client.ready)
    assert client.resident == frozenset()
    with pytest.raises(AdapterFailedError, match=f"{loaded} could not be loaded again .* not a directory"):
        await anext(of_lost)
    assert [output.finish_reason async for output in of_base][-1] is FinishReason.LENGTH
    assert lost == [(loaded, "the package is not a directory")]
    assert await answer(client, "r")


def refusing(path: Path) -> str:
    """What takes the place of Python: an engine that says why it cannot start, and ends."""
    says = encode(EngineFailed(REFUSAL))
    path.write_text(
        f"#!{sys.executable} -IS\nimport os, sys\nfd = int(sys.argv[5])\nos.read(fd, 9999)\nos.write(fd, {says!r})\n"
    )
    path.chmod(0o755)
    return str(path)


async def test_keeps_trying_after_it_has_given_up_hurrying(
    client: ProcessEngineClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    refuses = refusing(tmp_path / "refuses")
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    monkeypatch.setattr(client, "_policy", RestartPolicy(first_delay=0.01, quick_failures=0, slow_delay=0.02))
    restarts, waiting = client.restarts, client.submit(request("r"))
    await kill(client)
    with pytest.raises(EngineUnavailableError, match=r"died \d+ times in a row; it is started again in 0.02 s"):
        await anext(waiting)
    await until(lambda: client.restarts >= restarts + 3)
    assert "cannot start the engine process" in caplog.text
    monkeypatch.setattr(sys, "executable", refuses)
    await until(lambda: "does not start again" in client.unavailable)
    with pytest.raises(EngineUnavailableError, match=r"does not start again: .* the server's log says why"):
        client.submit(request("r"))
    assert f"did not start again: {REFUSAL}" in caplog.text
    assert not client.ready
    monkeypatch.undo()
    await until(lambda: client.ready)
    assert client.unavailable == ""
    assert await answer(client, "r")


async def test_start_failures_speak_plainly(tmp_path: Path, tiny_base: Path) -> None:
    missing, starved = (
        ProcessEngineClient(config_for(tmp_path)),
        ProcessEngineClient(config_for(tiny_base, kv_cache_gb=1e-9)),
    )
    results = await asyncio.gather(missing.start(), starved.start(), return_exceptions=True)
    assert all(isinstance(result, EngineStartError) for result in results)
    assert "no config.json" in str(results[0])
    assert "--kv-cache-gb" in str(results[1])
    assert missing.pid is starved.pid is None


HANGING_STEP = """
import time
from pathlib import Path
from server.engine.executor import Executor

real = Executor._run

def run(self, batch):
    while Path({flag!r}).exists():
        time.sleep(0.02)
    return real(self, batch)

Executor._run = run
"""


@pytest.mark.slow
async def test_a_step_that_never_ends_is_noticed_too(
    tiny_base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    flag = tmp_path / "hang"
    (tmp_path / "sitecustomize.py").write_text(HANGING_STEP.format(flag=str(flag)))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    client = ProcessEngineClient(config_for(tiny_base, step_timeout=3), policy=POLICY)
    await client.start()
    whole = await answer(client, "whole")
    flag.touch()
    hung = asyncio.create_task(answer(client, "hung"))
    await until(lambda: not client.ready)
    assert "a step has not got on for 3 s (--step-timeout)" in caplog.text
    flag.unlink()
    assert await hung == whole
    assert "executor.py" in capfd.readouterr().err, "it says where it hung"
    await client.close()


async def test_a_start_that_takes_too_long_is_given_up(tiny_base: Path) -> None:
    client = ProcessEngineClient(config_for(tiny_base, start_timeout=0.1))
    with pytest.raises(EngineStartError, match=r"not ready 0.1 s after its start \(--start-timeout\)"):
        await client.start()
    assert client.pid is None


async def test_closing_while_starting_leaves_no_process(tiny_base: Path) -> None:
    client = ProcessEngineClient(config_for(tiny_base))
    starting = asyncio.create_task(client.start())
    await until(lambda: client.pid is not None)
    pid = client.pid
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert pid is not None
    assert not psutil.pid_exists(pid)


async def test_closing_ends_what_waits_for_an_engine(tiny_base: Path) -> None:
    client = ProcessEngineClient(config_for(tiny_base))
    await client.start()
    stream = client.submit(request("r", max_tokens=LONG))
    await kill(client)
    await client.close()
    with pytest.raises(EngineUnavailableError, match="shutting down"):
        async for _ in stream:
            pass
    await client.close()
