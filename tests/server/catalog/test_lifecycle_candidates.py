"""Versions that are resident without being live: judged by their number, then activated or discarded."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest
from peft import LoraConfig

from adapters.errors import AdapterError
from server.catalog.versions import VersionState
from server.config import EngineConfig
from server.engine.engine_loop import SteppableEngine
from server.engine.messages import EngineInfo, FinishReason
from server.errors import ConflictError, EngineUnavailableError, InvalidRequestError, UnknownModelError
from tests.factory import make_adapter, make_base
from tests.server.catalog.support import Backend
from tests.server.engine.ipc.clients import answer, config_for, request, until
from tests.server.engine.ipc.fragile import Fragile, build_fragile
from tests.server.engine.ipc.local_client import RestartingLocalClient
from tests.server.live import slow_steps

LONG = 300


async def test_a_candidate_is_served_by_its_number_and_the_name_goes_on(
    backend: Backend, tiny_adapters: Mapping[str, Path]
) -> None:
    live = await backend.lifecycle.install_copy("json", tiny_adapters["lora-r8"])
    before = await backend.ask("json")
    candidate = await backend.lifecycle.install_copy("json", tiny_adapters["prefix-5"], activate=False)
    assert backend.registry.state(candidate.key) is VersionState.CANDIDATE
    assert backend.client.resident == {live.key, candidate.key}
    judged = await backend.ask("json@2")
    assert await backend.ask("json") == before != judged
    assert (backend.witness.loaded, backend.witness.changes) == ([live.key, candidate.key], ["load"])

    activation = await backend.lifecycle.activate("json", 2, expected_live=1)
    assert (activation.version, activation.replaced, activation.changed) == (candidate, live, True)
    assert await backend.ask("json") == judged
    await backend.lifecycle.settle()
    assert backend.client.resident == {candidate.key}
    assert backend.witness.loaded == [live.key, candidate.key], "it was resident, and is not counted as loaded again"
    assert (backend.witness.changes, backend.witness.retired) == (["load", "activate"], [live.key])

    activation = await backend.lifecycle.rollback("json")  # its files pass through the load once more
    assert (activation.version, activation.replaced) == (live, candidate)
    assert await backend.ask("json") == before
    assert backend.witness.loaded == [live.key, candidate.key, live.key]


async def test_the_first_version_of_a_name_may_be_a_candidate(
    backend: Backend, tiny_adapters: Mapping[str, Path]
) -> None:
    candidate = await backend.lifecycle.install_copy("new", tiny_adapters["lora-r8"], activate=False)
    judged = await backend.ask("new@1")
    with pytest.raises(UnknownModelError, match="not served yet"):
        await backend.ask("new")
    with pytest.raises(UnknownModelError, match="not served yet"):
        await backend.lifecycle.rollback("new")
    activation = await backend.lifecycle.activate("new", 1, expected_live=0)
    assert (activation.version, activation.replaced) == (candidate, None)
    assert await backend.ask("new") == judged


async def test_a_repeated_call_changes_nothing(backend: Backend, tiny_adapters: Mapping[str, Path]) -> None:
    first = await backend.lifecycle.install_copy("json", tiny_adapters["lora-r8"])
    install = backend.lifecycle.install_copy
    candidates = await asyncio.gather(*(install("json", tiny_adapters["lora-r4"], activate=False) for _ in range(3)))
    assert {id(candidate) for candidate in candidates} == {id(candidates[0])}
    assert await install("json", tiny_adapters["lora-r8"], activate=False) == first, "it is live already"
    for changed in (True, False):
        activation = await backend.lifecycle.activate("json", 2, expected_live=1)
        assert (activation.version, activation.changed) == (candidates[0], changed)
    for changed in (True, False):
        activation = await backend.lifecycle.rollback("json", 1, expected_live=2)
        assert (activation.version, activation.changed) == (first, changed)
    assert backend.witness.changes == ["load", "activate", "rollback"]


async def test_uploading_a_candidates_content_to_be_served_activates_it(
    backend: Backend, tiny_adapters: Mapping[str, Path]
) -> None:
    await backend.lifecycle.install_copy("json", tiny_adapters["lora-r8"])
    candidate = await backend.lifecycle.install_copy("json", tiny_adapters["lora-r4"], activate=False)
    assert await backend.lifecycle.install_copy("json", tiny_adapters["lora-r4"]) == candidate
    assert backend.registry.live("json") == candidate
    assert backend.witness.changes == ["load", "replace"]


async def test_nothing_is_activated_over_what_somebody_else_has_published(
    backend: Backend, tiny_adapters: Mapping[str, Path]
) -> None:
    await backend.lifecycle.install_copy("json", tiny_adapters["lora-r8"])
    await backend.lifecycle.install_copy("json", tiny_adapters["lora-r4"], activate=False)
    other = await backend.lifecycle.install_copy("json", tiny_adapters["prefix-5"])
    activate, rollback = backend.lifecycle.activate, backend.lifecycle.rollback
    for change in (
        activate("json", 2, expected_live=1),
        activate("json", 2, expected_live=0),
        rollback("json", expected_live=1),
        rollback("json", 1, expected_live=2),
    ):
        with pytest.raises(ConflictError, match=r"'json' serves version 3, .*changed meanwhile") as caught:
            await change
        assert caught.value.code == "live_version_changed"
    assert backend.registry.live("json") is other
    await backend.lifecycle.remove("json", force=True)
    await backend.lifecycle.install_copy("json", tiny_adapters["lora-r8"], activate=False)
    with pytest.raises(ConflictError, match="'json' serves no version, not 3"):
        await backend.lifecycle.activate("json", 4, expected_live=3)


async def test_rolling_back_is_to_what_was_live(backend: Backend, tiny_adapters: Mapping[str, Path]) -> None:
    first = await backend.lifecycle.install_copy("json", tiny_adapters["lora-r8"])
    await backend.lifecycle.install_copy("json", tiny_adapters["lora-r4"], activate=False)
    await backend.lifecycle.install_copy("json", tiny_adapters["prefix-5"])
    with pytest.raises(InvalidRequestError, match=r"json@2 has never been live; to activate it send PATCH"):
        await backend.lifecycle.rollback("json", 2)
    assert (await backend.lifecycle.rollback("json")).version == first
    with pytest.raises(InvalidRequestError, match="no version before 1"):
        await backend.lifecycle.rollback("json")
    with pytest.raises(UnknownModelError, match="no version '9'"):
        await backend.lifecycle.rollback("json", 9)
    assert (await backend.lifecycle.rollback("json", 3)).version.key.version == 3


async def test_a_rollback_whose_files_are_spoiled_changes_nothing(
    backend: Backend, tiny_adapters: Mapping[str, Path]
) -> None:
    first = await backend.lifecycle.install_copy("json", tiny_adapters["lora-r8"])
    second = await backend.lifecycle.install_copy("json", tiny_adapters["lora-r4"])
    before = await backend.ask("json")
    await backend.lifecycle.settle()
    weights = first.path / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(AdapterError):
        await backend.lifecycle.rollback("json")
    assert backend.registry.live("json") == second
    assert await backend.ask("json") == before


async def test_discarding_a_candidate(backend: Backend, tiny_adapters: Mapping[str, Path]) -> None:
    await backend.lifecycle.install_copy("json", tiny_adapters["lora-r8"])
    await until(lambda: backend.client.stats.adapters_resident == 1)
    weight = backend.client.stats.adapter_bytes
    candidate = await backend.lifecycle.install_copy("json", tiny_adapters["prefix-16"], activate=False)
    alone = await backend.ask("json@2", max_tokens=LONG)
    assert backend.client.stats.adapter_bytes > weight
    with slow_steps():
        running = asyncio.create_task(backend.ask("json@2", max_tokens=LONG))
        await until(lambda: backend.client.stats.num_running == 1)
        assert await backend.lifecycle.remove_version("json", 2) == candidate
        with pytest.raises(UnknownModelError, match="no version '2'"):
            await backend.ask("json@2")
        assert not running.done()
    assert await running == alone, "a drain lets it finish"
    await backend.lifecycle.settle()
    await backend.ask("json")  # the statistics come with a step
    assert (backend.client.stats.adapters_resident, backend.client.stats.adapter_bytes) == (1, weight)
    assert not candidate.path.exists()


async def test_discarding_by_force_ends_what_runs(backend: Backend, tiny_adapters: Mapping[str, Path]) -> None:
    await backend.lifecycle.install_copy("json", tiny_adapters["lora-r8"])
    candidate = await backend.lifecycle.install_copy("json", tiny_adapters["lora-r4"], activate=False)
    with slow_steps(), backend.registry.lease("json@2") as lease:
        stream = backend.client.submit(request("judge", lease.key, max_tokens=LONG))
        await anext(stream)
        await backend.lifecycle.remove_version("json", 2, force=True)
    assert [output async for output in stream][-1].finish_reason is FinishReason.ABORT
    assert not candidate.path.exists()


async def test_removing_a_name_takes_its_candidates(backend: Backend, tiny_adapters: Mapping[str, Path]) -> None:
    for name in ("lora-r8", "lora-r4"):
        await backend.lifecycle.install_copy("json", tiny_adapters[name], activate=name == "lora-r8")
    await backend.lifecycle.install_copy("waiting", tiny_adapters["lora-r4"], activate=False)
    assert [v.key.version for v in await backend.lifecycle.remove("json")] == [1, 2]
    assert [v.key.version for v in await backend.lifecycle.remove("waiting")] == [1]
    await backend.lifecycle.settle()
    assert backend.client.resident == frozenset()
    assert backend.witness.changes == ["load", "remove"], "the other name was never served"


async def test_refused_candidates_leave_everything_as_before(
    backend: Backend, tiny_adapters: Mapping[str, Path], tmp_path: Path
) -> None:
    other = make_base(tmp_path / "other", hidden_size=32, seed=3)
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    foreign = make_adapter(other, tmp_path / "foreign", config)
    for name in ("json", "new"):
        with pytest.raises(AdapterError):
            await backend.lifecycle.install_copy(name, foreign, activate=False)
    assert backend.registry.known_names() == []
    assert not backend.registry.counts()
    backend.check_integrity()


async def test_candidates_are_bounded(tiny_base: Path, tiny_adapters: Mapping[str, Path], tmp_path: Path) -> None:
    backend = Backend(tiny_base, tmp_path / "store", max_candidates=2)
    await backend.client.start()
    results = await asyncio.gather(
        *(backend.lifecycle.install_copy(f"n{i}", tiny_adapters["lora-r4"], activate=False) for i in range(4)),
        return_exceptions=True,
    )
    refused = [result for result in results if isinstance(result, BaseException)]
    assert [type(error) for error in refused] == [ConflictError, ConflictError]
    backend.check_integrity()
    await backend.client.close()


async def test_candidates_outlive_the_engine(
    tiny_base: Path, tiny_adapters: Mapping[str, Path], tmp_path: Path
) -> None:
    begins = threading.Event()
    begins.set()

    def build(config: EngineConfig) -> tuple[SteppableEngine, EngineInfo]:
        assert begins.wait(60)
        return build_fragile(config)

    client = RestartingLocalClient(config_for(tiny_base), build=build)
    backend = Backend(tiny_base, tmp_path / "store", client)
    await client.start()
    try:
        await backend.lifecycle.install_copy("json", tiny_adapters["lora-r8"])
        candidate = await backend.lifecycle.install_copy("json", tiny_adapters["prefix-5"], activate=False)
        spoiled = await backend.lifecycle.install_copy("other", tiny_adapters["lora-r4"], activate=False)
        judged = await backend.ask("json@2")
        (spoiled.path / "adapter_model.safetensors").unlink()
        begins.clear()
        Fragile.doomed.set()
        asked = asyncio.create_task(backend.ask("json@2"))  # ends the engine, and waits for the next one
        await until(lambda: not client.ready)
        with pytest.raises(EngineUnavailableError):
            await backend.lifecycle.activate("json", 2)
        assert backend.registry.state(candidate.key) is VersionState.CANDIDATE
        begins.set()
        assert await asked == judged
        assert client.ready
        assert await backend.ask("json@2") == judged
        with pytest.raises(AdapterError):  # it could not be loaded again, so it must not go live
            await backend.lifecycle.activate("other", 1)
        assert backend.registry.names() == ["json"]
        assert (await backend.lifecycle.activate("json", 2)).version == candidate
        assert await backend.ask("json") == judged
    finally:
        await backend.lifecycle.settle()
        await client.close()


async def test_every_change_at_random_under_traffic(backend: Backend, tiny_adapters: Mapping[str, Path]) -> None:
    """Whatever is uploaded, activated, rolled back and deleted: each answer is that of the version it was leased."""
    contents = ("lora-r8", "prompt-7", "prefix-5", "lora-bias")
    expected: dict[str, list[int]] = {}
    for name in contents:
        version = await backend.lifecycle.install_copy("probe", tiny_adapters[name])
        expected[version.key.digest] = await backend.ask("probe")
    assert len({tuple(tokens) for tokens in expected.values()}) == len(contents)
    await backend.lifecycle.remove("probe")
    await backend.lifecycle.install_copy("json", tiny_adapters[contents[0]])
    stop, dice = asyncio.Event(), random.Random(4)

    async def traffic(user: int) -> int:
        count = 0
        while not stop.is_set():
            states = {v.key.version: backend.registry.state(v.key) for v in backend.registry.versions("json")}
            waiting = [n for n, state in states.items() if state is VersionState.CANDIDATE]
            model = f"json@{waiting[-1]}" if waiting and (count + user) % 2 else "json"
            with backend.registry.lease(model) as lease:
                key = lease.key
                assert key is not None
                if count % 3 == 0:
                    await asyncio.sleep(0.003)  # as a long prompt that is tokenized elsewhere
                tokens = await answer(backend.client, f"u{user}-{count}", key, max_tokens=12)
                assert backend.registry.leased(key).key == key
            assert tokens == expected[key.digest], f"{key} answered by another version"
            count += 1
        return count

    async def change() -> None:
        versions = backend.registry.versions("json")
        chosen = dice.choice(versions).key.version
        match dice.randrange(6):
            case 0 | 1:
                package = tiny_adapters[dice.choice(contents)]
                await backend.lifecycle.install_copy("json", package, activate=dice.random() < 0.3)
            case 2 | 3:
                await backend.lifecycle.activate("json", chosen)
            case 4:
                await backend.lifecycle.rollback("json")
            case _:
                await backend.lifecycle.remove_version("json", chosen)

    users = [asyncio.create_task(traffic(user)) for user in range(4)]
    for _ in range(60):
        results = await asyncio.gather(*(change() for _ in range(3)), return_exceptions=True)
        # two changes at once may meet: one deletes what the other meant
        allowed = (UnknownModelError, InvalidRequestError)
        assert all(result is None or isinstance(result, allowed) for result in results), results
    stop.set()
    assert min(await asyncio.gather(*users)) > 0
    assert backend.registry.live("json")
