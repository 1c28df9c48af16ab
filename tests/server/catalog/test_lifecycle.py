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

LONG = 300


async def test_an_installed_adapter_serves_its_name(house: Backend, tiny_adapters: Mapping[str, Path]) -> None:
    version = await house.lifecycle.install_copy("json", tiny_adapters["prefix-16"])
    assert (str(version.key), version.kind, version.num_virtual_tokens) == ("json@1", "prefix", 16)
    assert version.nbytes > 0
    assert len(version.key.digest) == 64
    assert house.registry.live("json") is version
    assert await house.ask("json") != await house.ask("base")
    assert house.witness.loaded == [version.key]
    assert house.witness.changes == ["load"]


async def test_content_that_is_served_already_changes_nothing(
    house: Backend, tiny_adapters: Mapping[str, Path]
) -> None:
    first = await house.lifecycle.install_copy("json", tiny_adapters["lora-r4"])
    assert await house.lifecycle.install_copy("json", tiny_adapters["lora-r4"]) is first
    other = await house.lifecycle.install_copy("other", tiny_adapters["lora-r4"])
    assert other.key == AdapterKey("other", 1, first.key.digest)
    assert house.witness.loaded == [first.key, other.key]


async def test_replacing_during_a_stream_changes_nothing_for_it(
    house: Backend, tiny_adapters: Mapping[str, Path]
) -> None:
    first = await house.lifecycle.install_copy("json", tiny_adapters["lora-r8"])
    alone = await house.ask("json", max_tokens=LONG)
    running = asyncio.create_task(house.ask("json", max_tokens=LONG))
    await until(lambda: house.client.stats.num_running == 1)
    second = await house.lifecycle.install_copy("json", tiny_adapters["lora-bias"])
    assert not running.done()
    assert house.registry.resolve("json") == second.key
    assert house.registry.state(first.key) is VersionState.DRAINING
    assert house.client.resident == {first.key, second.key}
    new = await house.ask("json")
    assert not running.done()
    assert await running == alone
    assert new != alone[: len(new)]
    await house.lifecycle.settle()
    assert house.registry.state(first.key) is VersionState.STORED
    assert house.witness.loaded == [first.key, second.key]
    assert house.witness.changes == ["load", "replace"]
    assert house.witness.retired == [first.key]


async def test_a_request_between_resolving_and_submitting_keeps_its_version(
    house: Backend, tiny_adapters: Mapping[str, Path]
) -> None:
    await house.lifecycle.install_copy("json", tiny_adapters["lora-r8"])
    before = await house.ask("json")
    with house.registry.lease("json") as lease:  # resolved, nothing submitted yet
        await house.lifecycle.install_copy("json", tiny_adapters["lora-r4"])
        await house.lifecycle.install_copy("json", tiny_adapters["lora-bias"])
        assert await answer(house.client, "late", lease.key, max_tokens=len(before)) == before


async def test_rolling_back(house: Backend, tiny_adapters: Mapping[str, Path]) -> None:
    first = await house.lifecycle.install_copy("json", tiny_adapters["lora-r8"])
    before = await house.ask("json")
    with pytest.raises(InvalidRequestError, match="no version before 1"):
        await house.lifecycle.rollback("json")
    second = await house.lifecycle.install_copy("json", tiny_adapters["lora-r4"])
    await house.lifecycle.settle()  # the first version has left the engine
    assert (await house.lifecycle.rollback("json")).version is first
    assert await house.ask("json") == before
    assert (await house.lifecycle.activate("json", 1)).version is first
    await house.lifecycle.settle()
    assert (await house.lifecycle.activate("json", 2)).version is second
    assert [v.key.version for v in house.registry.versions("json")] == [1, 2]
    with pytest.raises(UnknownModelError, match="no version '7'"):
        await house.lifecycle.activate("json", 7)


async def test_rolling_back_to_a_version_that_still_drains(house: Backend, tiny_adapters: Mapping[str, Path]) -> None:
    first = await house.lifecycle.install_copy("json", tiny_adapters["lora-r8"])
    alone = await house.ask("json", max_tokens=LONG)
    running = asyncio.create_task(house.ask("json", max_tokens=LONG))
    await until(lambda: house.client.stats.num_running == 1)
    await house.lifecycle.install_copy("json", tiny_adapters["lora-r4"])
    loads = len(house.witness.loaded)
    assert (await house.lifecycle.rollback("json")).version is first
    assert not running.done()
    assert len(house.witness.loaded) == loads, "it was still resident"
    assert await running == alone
    await house.lifecycle.settle()
    assert await house.ask("json", max_tokens=LONG) == alone


async def test_rolling_back_while_the_engine_unloads(house: Backend, tiny_adapters: Mapping[str, Path]) -> None:
    first = await house.lifecycle.install_copy("json", tiny_adapters["lora-r8"])
    key = first.key
    stream = house.client.submit(request("unleased", key, max_tokens=LONG))  # so that the engine itself must drain
    await anext(stream)
    await house.lifecycle.install_copy("json", tiny_adapters["lora-r4"])
    await until(lambda: key not in house.client.resident)
    rolling = asyncio.create_task(house.lifecycle.rollback("json"))
    await asyncio.sleep(0)
    assert not rolling.done()
    rest = [output async for output in stream]
    assert rest[-1].finish_reason is FinishReason.LENGTH
    assert (await rolling).version is first
    assert house.registry.resolve("json") == key


async def test_concurrent_installs_of_one_name(house: Backend, tiny_adapters: Mapping[str, Path]) -> None:
    sources = [tiny_adapters[name] for name in ("lora-r4", "lora-r8", "lora-bias", "prefix-5", "prompt-7")]
    installed = await asyncio.gather(*(house.lifecycle.install_copy("json", source) for source in sources))
    assert sorted(version.key.version for version in installed) == [1, 2, 3, 4, 5]
    assert house.registry.live("json").key.version == 5


async def test_concurrent_installs_of_the_same_content(house: Backend, tiny_adapters: Mapping[str, Path]) -> None:
    install = house.lifecycle.install_copy
    installed = await asyncio.gather(*(install("json", tiny_adapters["lora-r4"]) for _ in range(4)))
    assert {id(version) for version in installed} == {id(installed[0])}


async def test_an_install_is_carried_to_its_end_when_its_caller_leaves(
    house: Backend, tiny_adapters: Mapping[str, Path]
) -> None:
    package = house.store.stage_copy(tiny_adapters["lora-r4"])
    installing = asyncio.create_task(house.lifecycle.install("json", package))
    await asyncio.sleep(0)
    installing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await installing
    await house.lifecycle.settle()
    assert house.registry.names() == ["json"]


async def test_refusals_leave_everything_as_before(
    house: Backend, tiny_adapters: Mapping[str, Path], tmp_path: Path
) -> None:
    other = make_base(tmp_path / "other", hidden_size=32, seed=3)
    foreign = make_adapter(
        other, tmp_path / "foreign", LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    )
    first = await house.lifecycle.install_copy("json", tiny_adapters["lora-r4"])
    before = await house.ask("json")
    for name, package, error in (
        ("json", foreign, AdapterError),  # refused by the engine
        ("json", None, PackageError),  # refused by inspection
        ("no/name", foreign, PackageError),
        ("base", foreign, InvalidRequestError),
        ("new", foreign, AdapterError),
    ):
        quarantined = house.store.stage_copy(package) if package else house.store.new_quarantine()
        with pytest.raises(error):
            await house.lifecycle.install(name, quarantined)
        house.check_integrity()
    assert house.registry.names() == ["json"]
    assert house.registry.live("json") is first
    assert await house.ask("json") == before
    assert len(house.witness.refused) == 4
    assert (await house.lifecycle.install_copy("json", tiny_adapters["lora-r8"])).key.version == 2
    assert (await house.lifecycle.install_copy("new", tiny_adapters["lora-r8"])).key.version == 1


async def test_an_engine_that_is_down_refuses_and_leaves_nothing(
    tiny_base: Path, tiny_adapters: Mapping[str, Path], tmp_path: Path
) -> None:
    house = Backend(tiny_base, tmp_path / "store")  # never started
    with pytest.raises(EngineUnavailableError):
        await house.lifecycle.install_copy("json", tiny_adapters["lora-r4"])
    house.check_integrity()
    assert house.registry.names() == []
    assert house.witness.refused == []


async def test_removing_lets_running_requests_finish(house: Backend, tiny_adapters: Mapping[str, Path]) -> None:
    first = await house.lifecycle.install_copy("json", tiny_adapters["lora-r8"])
    alone = await house.ask("json", max_tokens=LONG)
    running = asyncio.create_task(house.ask("json", max_tokens=LONG))
    await until(lambda: house.client.stats.num_running == 1)
    assert await house.lifecycle.remove("json") == [first]
    with pytest.raises(UnknownModelError, match="'json' was removed"):
        await house.ask("json")
    assert not running.done()
    assert first.path.is_dir()
    assert await running == alone
    await house.lifecycle.settle()
    assert not first.path.exists()
    assert house.witness.changes == ["load", "remove"]


async def test_removing_by_force_aborts(house: Backend, tiny_adapters: Mapping[str, Path]) -> None:
    versions: list[AdapterVersion] = []
    for source in ("lora-r8", "lora-r4"):
        versions.append(await house.lifecycle.install_copy("json", tiny_adapters[source]))
        with house.registry.lease("json") as lease:
            stream = house.client.submit(request(source, lease.key, max_tokens=LONG))
            await anext(stream)
    await house.lifecycle.remove("json", force=True)
    outputs = [output async for output in stream]
    assert outputs[-1].finish_reason is FinishReason.ABORT
    assert not any(version.path.exists() for version in versions)
    assert house.client.resident == frozenset()


async def test_removing_by_force_does_not_wait_for_leases(house: Backend, tiny_adapters: Mapping[str, Path]) -> None:
    await house.lifecycle.install_copy("json", tiny_adapters["lora-r8"])
    with house.registry.lease("json"):
        await house.lifecycle.install_copy("json", tiny_adapters["lora-r4"])
        await asyncio.wait_for(house.lifecycle.remove("json", force=True), 30)
        await asyncio.wait_for(house.lifecycle.settle(), 30)


async def test_a_removed_name_can_come_back(house: Backend, tiny_adapters: Mapping[str, Path]) -> None:
    await house.lifecycle.install_copy("json", tiny_adapters["lora-r8"])
    before = await house.ask("json")
    await house.lifecycle.remove("json")
    again = await house.lifecycle.install_copy("json", tiny_adapters["lora-r8"])
    assert again.key.version == 2
    assert await house.ask("json") == before
    with pytest.raises(UnknownModelError):
        await house.lifecycle.remove("nobody")


async def test_removing_one_version(house: Backend, tiny_adapters: Mapping[str, Path]) -> None:
    first = await house.lifecycle.install_copy("json", tiny_adapters["lora-r8"])
    with pytest.raises(InvalidRequestError, match="json@1 is being served"):
        await house.lifecycle.remove_version("json", 1)
    await house.lifecycle.install_copy("json", tiny_adapters["lora-r4"])
    await house.lifecycle.remove_version("json", 1)
    await house.lifecycle.settle()
    assert not first.path.exists()
    with pytest.raises(UnknownModelError):
        await house.lifecycle.activate("json", 1)


async def test_many_swaps_under_traffic(house: Backend, tiny_adapters: Mapping[str, Path]) -> None:
    sources: dict[str, list[int]] = {"lora-r8": [], "prompt-7": [], "prefix-5": []}
    for name in sources:
        await house.lifecycle.install_copy("probe", tiny_adapters[name])
        sources[name] = await house.ask("probe")
    assert len({tuple(expected) for expected in sources.values()}) == len(sources)
    await house.lifecycle.remove("probe")
    await house.lifecycle.install_copy("json", tiny_adapters["lora-r8"])
    stop = asyncio.Event()

    async def traffic() -> int:
        count = 0
        while not stop.is_set():
            assert await house.ask("json") in sources.values(), "an answer of no version at all"
            count += 1
        return count

    users = [asyncio.create_task(traffic()) for _ in range(4)]
    for round_ in range(9):
        await house.lifecycle.install_copy("json", tiny_adapters[list(sources)[round_ % 3]])
    stop.set()
    assert min(await asyncio.gather(*users)) > 0
