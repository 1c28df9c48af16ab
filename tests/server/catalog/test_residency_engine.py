"""More versions than there is room for, with a real engine: each is served, and answers what it answered before."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from server.catalog.memory_ledger import Budget
from server.catalog.places import Stage
from server.catalog.polling import Poller
from server.catalog.versions import VersionState
from server.errors import AdapterFailedError
from tests.server.catalog.spoil import flip_a_bit
from tests.server.catalog.support import Backend
from tests.server.engine.ipc.clients import config_for, until
from tests.server.engine.ipc.local_client import LocalEngineClient

KINDS = ("lora-r8", "prefix-16", "prompt-7", "lora-bias", "vera", "lora-r4")


@asynccontextmanager
async def backend_of(base: Path, root: Path, budget: Budget, *, eager: bool = True) -> AsyncIterator[Backend]:
    made = Backend(base, root, budget=budget, eager=eager)
    await made.client.start()
    try:
        yield made
        async with asyncio.timeout(30):
            await made.lifecycle.settle()
        made.check_integrity()
    finally:
        await made.lifecycle.close()
        await made.client.close()
        made.store.close()


async def test_every_kind_answers_after_eviction_what_it_answered_before(
    tiny_base: Path, tiny_adapters: Mapping[str, Path], tmp_path: Path
) -> None:
    async with backend_of(tiny_base, tmp_path / "store", Budget(max_count=2)) as backend:
        before = {}
        for kind in KINDS:
            await backend.lifecycle.install_copy(kind, tiny_adapters[kind])
            before[kind] = await backend.ask(kind)
        assert len({tuple(tokens) for tokens in before.values()}) == len(KINDS)
        for _ in range(2):
            for kind in KINDS:
                assert await backend.ask(kind) == before[kind], kind
                assert len(backend.client.resident) <= 2
        await backend.ask("lora-r8")
        await backend.ask("lora-r4")
        await until(lambda: backend.client.stats.kv_blocks_used == 0)  # prefixes that left hold none


async def test_a_flood_of_more_names_than_fit_is_answered_in_full(
    tiny_base: Path, tiny_adapters: Mapping[str, Path], tmp_path: Path
) -> None:
    async with backend_of(tiny_base, tmp_path / "store", Budget(max_count=2)) as backend:
        packages = [tiny_adapters[name] for name in ("lora-r4", "lora-r8", "lora-bias")]
        for number in range(9):
            await backend.lifecycle.install_copy(f"n{number}", packages[number % 3])
        alone = [await backend.ask(f"n{number}") for number in range(3)]
        async with asyncio.timeout(60):
            answers = await asyncio.gather(*(backend.ask(f"n{number}") for number in range(9) for _ in range(3)))
        assert answers == [alone[number % 3] for number in range(9) for _ in range(3)]


async def test_bytes_are_the_engines(tiny_base: Path, tiny_adapters: Mapping[str, Path], tmp_path: Path) -> None:
    async with backend_of(tiny_base, tmp_path / "probe", Budget()) as probe:
        small = (await probe.lifecycle.install_copy("a", tiny_adapters["lora-r4"])).nbytes
        large = (await probe.lifecycle.install_copy("b", tiny_adapters["lora-r8"])).nbytes
    most = small + large
    client = LocalEngineClient(config_for(tiny_base, max_adapter_gb=most / 1e9))
    backend = Backend(tiny_base, tmp_path / "store", client, budget=Budget(max_bytes=most))
    await client.start()
    try:
        for name in ("small", "large", "next"):
            source = tiny_adapters["lora-r8" if name == "large" else "lora-r4"]
            await backend.lifecycle.install_copy(name, source, activate=name != "next")
        assert {key.name for key in client.resident} == {"large", "next"}
        await until(lambda: client.stats.adapter_bytes == most)
        assert await backend.ask("small") == await backend.ask("next@1")
        backend.residency.check_integrity()
    finally:
        await client.close()


async def test_a_stored_package_that_was_spoiled_fails_its_requests_and_is_mended_by_an_upload(
    tiny_base: Path, tiny_adapters: Mapping[str, Path], tmp_path: Path
) -> None:
    async with backend_of(tiny_base, tmp_path / "store", Budget(max_count=1)) as backend:
        version = await backend.lifecycle.install_copy("json", tiny_adapters["lora-r8"])
        before = await backend.ask("json")
        await backend.lifecycle.install_copy("other", tiny_adapters["lora-r4"])
        flip_a_bit(version.path)
        other = await backend.ask("other")
        with pytest.raises(AdapterFailedError, match=r"json@1 cannot be loaded: .*not those that were uploaded"):
            await backend.ask("json")
        assert backend.registry.state(version.key) is VersionState.FAILED
        assert await backend.ask("other") == other
        await backend.lifecycle.install_copy("json", tiny_adapters["lora-r8"])
        assert await backend.ask("json") == before


async def test_removal_and_replacement_of_what_is_not_in_memory(
    tiny_base: Path, tiny_adapters: Mapping[str, Path], tmp_path: Path
) -> None:
    async with backend_of(tiny_base, tmp_path / "store", Budget(max_count=1)) as backend:
        first = await backend.lifecycle.install_copy("json", tiny_adapters["lora-r8"])
        old = await backend.ask("json")
        await backend.lifecycle.install_copy("other", tiny_adapters["lora-r4"])
        assert backend.residency.stage(first.key) is None
        second = await backend.lifecycle.install_copy("json", tiny_adapters["lora-bias"])
        new = await backend.ask("json")
        assert new != old
        await backend.ask("other")
        assert (await backend.lifecycle.rollback("json")).version.key == first.key
        assert backend.residency.stage(first.key) is Stage.RESIDENT, "it was loaded before its name meant it"
        assert await backend.ask("json") == old
        await backend.ask("other")
        await backend.lifecycle.remove("json", force=True)
        assert not second.path.exists()
        assert not first.path.exists()


@pytest.mark.parametrize("eager", [True, False])
async def test_a_restarted_server_loads_eagerly_or_at_first_use(
    eager: bool, tiny_base: Path, tiny_adapters: Mapping[str, Path], tmp_path: Path
) -> None:
    names = ("a", "b", "c")
    async with backend_of(tiny_base, tmp_path / "store", Budget()) as backend:
        for name in names:
            await backend.lifecycle.install_copy(name, tiny_adapters["lora-r8"])
        before = await backend.ask("a")
    async with backend_of(tiny_base, tmp_path / "store", Budget(max_count=2), eager=eager) as backend:
        poller = Poller(backend.lifecycle)
        assert await poller.restore() == 3
        assert backend.registry.names() == list(names), "all can be asked for"
        await backend.residency.settle()
        assert len(backend.client.resident) == (2 if eager else 0)
        for name in names:
            assert await backend.ask(name) == before
        await poller.close()
