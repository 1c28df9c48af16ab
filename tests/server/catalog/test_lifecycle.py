"""Adapters coming and going on a running engine: a real one, on a tiny base, in a thread."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import pytest
from peft import LoraConfig

from adapters.errors import AdapterError, PackageError
from server.adapter_key import AdapterKey
from server.catalog.versions import AdapterVersion, VersionState
from server.engine.messages import FinishReason
from server.errors import EngineUnavailableError, InvalidRequestError, UnknownModelError
from tests.factory import make_adapter, make_base
from tests.server.catalog.support import Backend
from tests.server.engine.ipc.clients import answer, request, until
from tests.server.live import slow_steps

LONG = 490  # with a prompt and virtual tokens all that the tiny base has positions for


async def test_an_installed_adapter_serves_its_name(backend: Backend, tiny_adapters: Mapping[str, Path]) -> None:
    version = await backend.lifecycle.install_copy("json", tiny_adapters["prefix-16"])
    assert (str(version.key), version.kind, version.num_virtual_tokens) == ("json@1", "prefix", 16)
    assert version.nbytes > 0
    assert len(version.key.digest) == 64
    assert backend.registry.live("json") is version
    assert await backend.ask("json") != await backend.ask("base")
    assert backend.witness.loaded == [version.key]
    assert backend.witness.changes == ["load"]


async def test_content_that_is_served_already_changes_nothing(
    backend: Backend, tiny_adapters: Mapping[str, Path]
) -> None:
    first = await backend.lifecycle.install_copy("json", tiny_adapters["lora-r4"])
    assert await backend.lifecycle.install_copy("json", tiny_adapters["lora-r4"]) == first
    other = await backend.lifecycle.install_copy("other", tiny_adapters["lora-r4"])
    assert other.key == AdapterKey("other", 1, first.key.digest)
    assert backend.witness.loaded == [first.key, other.key]


async def test_replacing_during_a_stream_changes_nothing_for_it(
    backend: Backend, tiny_adapters: Mapping[str, Path]
) -> None:
    first = await backend.lifecycle.install_copy("json", tiny_adapters["lora-r8"])
    alone = await backend.ask("json", max_tokens=LONG)
    with slow_steps():
        running = asyncio.create_task(backend.ask("json", max_tokens=LONG))
        await until(lambda: backend.client.stats.num_running == 1)
        second = await backend.lifecycle.install_copy("json", tiny_adapters["lora-bias"])
        assert not running.done()
        assert backend.registry.resolve("json") == second.key
        assert backend.registry.state(first.key) is VersionState.DRAINING
        assert backend.client.resident == {first.key, second.key}
        new = await backend.ask("json")
        assert not running.done()
    assert await running == alone
    assert new != alone[: len(new)]
    await backend.lifecycle.settle()
    assert backend.registry.state(first.key) is VersionState.STORED
    assert backend.witness.loaded == [first.key, second.key]
    assert backend.witness.changes == ["load", "replace"]
    assert backend.witness.retired == [first.key]


async def test_a_request_between_resolving_and_submitting_keeps_its_version(
    backend: Backend, tiny_adapters: Mapping[str, Path]
) -> None:
    await backend.lifecycle.install_copy("json", tiny_adapters["lora-r8"])
    before = await backend.ask("json")
    with backend.registry.lease("json") as lease:  # resolved, nothing submitted yet
        await backend.lifecycle.install_copy("json", tiny_adapters["lora-r4"])
        await backend.lifecycle.install_copy("json", tiny_adapters["lora-bias"])
        assert await answer(backend.client, "late", lease.key, max_tokens=len(before)) == before


async def test_rolling_back(backend: Backend, tiny_adapters: Mapping[str, Path]) -> None:
    first = await backend.lifecycle.install_copy("json", tiny_adapters["lora-r8"])
    before = await backend.ask("json")
    with pytest.raises(InvalidRequestError, match="no version before 1"):
        await backend.lifecycle.rollback("json")
    second = await backend.lifecycle.install_copy("json", tiny_adapters["lora-r4"])
    await backend.lifecycle.settle()  # the first version has left the engine
    assert (await backend.lifecycle.rollback("json")).version == first
    assert await backend.ask("json") == before
    assert (await backend.lifecycle.activate("json", 1)).version == first
    await backend.lifecycle.settle()
    assert (await backend.lifecycle.activate("json", 2)).version == second
    assert [v.key.version for v in backend.registry.versions("json")] == [1, 2]
    with pytest.raises(UnknownModelError, match="no version '7'"):
        await backend.lifecycle.activate("json", 7)


async def test_rolling_back_to_a_version_that_still_drains(backend: Backend, tiny_adapters: Mapping[str, Path]) -> None:
    first = await backend.lifecycle.install_copy("json", tiny_adapters["lora-r8"])
    alone = await backend.ask("json", max_tokens=LONG)
    with slow_steps():
        running = asyncio.create_task(backend.ask("json", max_tokens=LONG))
        await until(lambda: backend.client.stats.num_running == 1)
        await backend.lifecycle.install_copy("json", tiny_adapters["lora-r4"])
        loads = len(backend.witness.loaded)
        assert (await backend.lifecycle.rollback("json")).version == first
    assert len(backend.witness.loaded) == loads, "it was still resident"
    assert await running == alone
    await backend.lifecycle.settle()
    assert await backend.ask("json", max_tokens=LONG) == alone


async def test_rolling_back_while_the_engine_unloads(backend: Backend, tiny_adapters: Mapping[str, Path]) -> None:
    first = await backend.lifecycle.install_copy("json", tiny_adapters["lora-r8"])
    key = first.key
    with slow_steps():
        stream = backend.client.submit(request("unleased", key, max_tokens=LONG))  # so that the engine must drain
        await anext(stream)
        await backend.lifecycle.install_copy("json", tiny_adapters["lora-r4"])
        await until(lambda: key not in backend.client.resident)
        rolling = asyncio.create_task(backend.lifecycle.rollback("json"))
        await asyncio.sleep(0)
        assert not rolling.done()
    rest = [output async for output in stream]
    assert rest[-1].finish_reason is FinishReason.LENGTH
    assert (await rolling).version == first
    assert backend.registry.resolve("json") == key


async def test_concurrent_installs_of_one_name(backend: Backend, tiny_adapters: Mapping[str, Path]) -> None:
    sources = [tiny_adapters[name] for name in ("lora-r4", "lora-r8", "lora-bias", "prefix-5", "prompt-7")]
    installed = await asyncio.gather(*(backend.lifecycle.install_copy("json", source) for source in sources))
    assert sorted(version.key.version for version in installed) == [1, 2, 3, 4, 5]
    assert backend.registry.live("json").key.version == 5


async def test_concurrent_installs_of_the_same_content(backend: Backend, tiny_adapters: Mapping[str, Path]) -> None:
    install = backend.lifecycle.install_copy
    installed = await asyncio.gather(*(install("json", tiny_adapters["lora-r4"]) for _ in range(4)))
    assert {id(version) for version in installed} == {id(installed[0])}


async def test_an_install_is_carried_to_its_end_when_its_caller_leaves(
    backend: Backend, tiny_adapters: Mapping[str, Path]
) -> None:
    package = backend.store.stage_copy(tiny_adapters["lora-r4"])
    installing = asyncio.create_task(backend.lifecycle.install("json", package))
    await asyncio.sleep(0)
    installing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await installing
    await backend.lifecycle.settle()
    assert backend.registry.names() == ["json"]


async def test_refusals_leave_everything_as_before(
    backend: Backend, tiny_adapters: Mapping[str, Path], tmp_path: Path
) -> None:
    other = make_base(tmp_path / "other", hidden_size=32, seed=3)
    foreign = make_adapter(
        other, tmp_path / "foreign", LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    )
    first = await backend.lifecycle.install_copy("json", tiny_adapters["lora-r4"])
    before = await backend.ask("json")
    for name, package, error in (
        ("json", foreign, AdapterError),  # refused by the engine
        ("json", None, PackageError),  # refused by inspection
        ("no/name", foreign, PackageError),
        ("base", foreign, InvalidRequestError),
        ("new", foreign, AdapterError),
    ):
        quarantined = backend.store.stage_copy(package) if package else backend.store.new_quarantine()
        with pytest.raises(error):
            await backend.lifecycle.install(name, quarantined)
        backend.check_integrity()
    assert backend.registry.names() == ["json"]
    assert backend.registry.live("json") == first
    assert await backend.ask("json") == before
    assert len(backend.witness.refused) == 4
    assert (await backend.lifecycle.install_copy("json", tiny_adapters["lora-r8"])).key.version == 2
    assert (await backend.lifecycle.install_copy("new", tiny_adapters["lora-r8"])).key.version == 1


async def test_an_engine_that_is_down_refuses_and_leaves_nothing(
    tiny_base: Path, tiny_adapters: Mapping[str, Path], tmp_path: Path
) -> None:
    backend = Backend(tiny_base, tmp_path / "store")  # never started
    with pytest.raises(EngineUnavailableError):
        await backend.lifecycle.install_copy("json", tiny_adapters["lora-r4"])
    backend.check_integrity()
    assert backend.registry.names() == []
    assert backend.witness.refused == []


async def test_removing_lets_running_requests_finish(backend: Backend, tiny_adapters: Mapping[str, Path]) -> None:
    first = await backend.lifecycle.install_copy("json", tiny_adapters["lora-r8"])
    alone = await backend.ask("json", max_tokens=LONG)
    with slow_steps():
        running = asyncio.create_task(backend.ask("json", max_tokens=LONG))
        await until(lambda: backend.client.stats.num_running == 1)
        assert await backend.lifecycle.remove("json") == [first]
        with pytest.raises(UnknownModelError, match="'json' was removed"):
            await backend.ask("json")
        assert not running.done()
    assert first.path.is_dir()
    assert await running == alone
    await backend.lifecycle.settle()
    assert not first.path.exists()
    assert backend.witness.changes == ["load", "remove"]
    assert backend.witness.changed == [first.key, first.key]


async def test_removing_by_force_aborts(backend: Backend, tiny_adapters: Mapping[str, Path]) -> None:
    versions: list[AdapterVersion] = []
    with slow_steps():
        for source in ("lora-r8", "lora-r4"):
            versions.append(await backend.lifecycle.install_copy("json", tiny_adapters[source]))
            with backend.registry.lease("json") as lease:
                stream = backend.client.submit(request(source, lease.key, max_tokens=LONG))
                await anext(stream)
        await backend.lifecycle.remove("json", force=True)
    outputs = [output async for output in stream]
    assert outputs[-1].finish_reason is FinishReason.ABORT
    assert not any(version.path.exists() for version in versions)
    assert backend.client.resident == frozenset()


async def test_removing_by_force_does_not_wait_for_leases(backend: Backend, tiny_adapters: Mapping[str, Path]) -> None:
    await backend.lifecycle.install_copy("json", tiny_adapters["lora-r8"])
    with backend.registry.lease("json"):
        await backend.lifecycle.install_copy("json", tiny_adapters["lora-r4"])
        await asyncio.wait_for(backend.lifecycle.remove("json", force=True), 30)
        await asyncio.wait_for(backend.lifecycle.settle(), 30)


async def test_a_removed_name_can_come_back(backend: Backend, tiny_adapters: Mapping[str, Path]) -> None:
    await backend.lifecycle.install_copy("json", tiny_adapters["lora-r8"])
    before = await backend.ask("json")
    await backend.lifecycle.remove("json")
    again = await backend.lifecycle.install_copy("json", tiny_adapters["lora-r8"])
    assert again.key.version == 2
    assert await backend.ask("json") == before
    with pytest.raises(UnknownModelError):
        await backend.lifecycle.remove("nobody")


async def test_removing_one_version(backend: Backend, tiny_adapters: Mapping[str, Path]) -> None:
    first = await backend.lifecycle.install_copy("json", tiny_adapters["lora-r8"])
    with pytest.raises(InvalidRequestError, match="json@1 is being served"):
        await backend.lifecycle.remove_version("json", 1)
    await backend.lifecycle.install_copy("json", tiny_adapters["lora-r4"])
    await backend.lifecycle.remove_version("json", 1)
    await backend.lifecycle.settle()
    assert not first.path.exists()
    with pytest.raises(UnknownModelError):
        await backend.lifecycle.activate("json", 1)


async def test_many_swaps_under_traffic(backend: Backend, tiny_adapters: Mapping[str, Path]) -> None:
    sources: dict[str, list[int]] = {"lora-r8": [], "prompt-7": [], "prefix-5": []}
    for name in sources:
        await backend.lifecycle.install_copy("probe", tiny_adapters[name])
        sources[name] = await backend.ask("probe")
    assert len({tuple(expected) for expected in sources.values()}) == len(sources)
    await backend.lifecycle.remove("probe")
    await backend.lifecycle.install_copy("json", tiny_adapters["lora-r8"])
    stop = asyncio.Event()

    async def traffic() -> int:
        count = 0
        while not stop.is_set():
            assert await backend.ask("json") in sources.values(), "an answer of no version at all"
            count += 1
        return count

    users = [asyncio.create_task(traffic()) for _ in range(4)]
    for round_ in range(9):
        await backend.lifecycle.install_copy("json", tiny_adapters[list(sources)[round_ % 3]])
    stop.set()
    assert min(await asyncio.gather(*users)) > 0
