"""What outlives a server, what one server sees of another's changes, and what is swept up."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from server.adapter_key import AdapterKey
from server.catalog.events import Event
from server.catalog.following import LOAD_FIRST_SECONDS
from server.catalog.polling import Poller
from server.catalog.versions import NameSettings, VersionHistory, VersionState
from server.engine.messages import AdapterLoaded
from server.errors import AdapterFailedError, StoreError, UnknownModelError
from tests.server.catalog.support import Backend
from tests.server.engine.ipc.clients import until


@asynccontextmanager
async def running(base: Path, root: Path, database: str = "") -> AsyncIterator[tuple[Backend, Poller]]:
    """A server that has restored what its catalog knows. It ends as a killed one does: nothing is said of it."""
    backend = Backend(base, root, database=database)
    await backend.client.start()
    poller = Poller(backend.lifecycle, dead_after=0)
    try:
        await poller.restore()
        yield backend, poller
    finally:
        await backend.lifecycle.close()
        await backend.client.close()
        backend.store.close()
        backend.database.close()


async def test_a_restart_serves_what_was_served(
    tiny_base: Path, tiny_adapters: Mapping[str, Path], tmp_path: Path, database_url: str
) -> None:
    async with running(tiny_base, tmp_path, database_url) as (backend, _):
        for package in ("lora-r8", "lora-r4"):
            await backend.lifecycle.install_copy("json", tiny_adapters[package])
        await backend.lifecycle.install_copy("json", tiny_adapters["ia3"], activate=False)
        await backend.lifecycle.rollback("json")
        await backend.lifecycle.install_copy("gone", tiny_adapters["lora-r8"])
        await backend.lifecycle.remove("gone")
        await backend.lifecycle.settle()  # else a thread of this process goes on deleting, as none of a killed one does
        before = [await backend.ask("json"), await backend.ask("json@3")]
        versions = backend.registry.versions("json")

    async with running(tiny_base, tmp_path, database_url) as (backend, _):
        assert backend.registry.versions("json") == versions
        assert [backend.registry.state(version.key) for version in versions] == [
            *(VersionState.LIVE, VersionState.STORED, VersionState.CANDIDATE)
        ]
        assert [await backend.ask("json"), await backend.ask("json@3")] == before
        with pytest.raises(UnknownModelError, match="'gone' was removed"):
            await backend.ask("gone")
        assert (await backend.lifecycle.activate("json", 2)).replaced == versions[0]
        fourth = await backend.lifecycle.install_copy("json", tiny_adapters["vera"])
        assert fourth.key.version == 4
        await backend.lifecycle.settle()
        backend.check_integrity()


async def test_files_that_were_lost_fail_alone(
    tiny_base: Path, tiny_adapters: Mapping[str, Path], tmp_path: Path
) -> None:
    async with running(tiny_base, tmp_path) as (backend, _):
        for name in ("a", "b"):
            version = await backend.lifecycle.install_copy(name, tiny_adapters["lora-r8"])
        answer = await backend.ask("a")
    shutil.rmtree(version.path)
    async with running(tiny_base, tmp_path) as (backend, _):
        assert await backend.ask("a") == answer
        with pytest.raises(AdapterFailedError, match="b@1 cannot be loaded"):
            await backend.ask("b")
        await backend.lifecycle.install_copy("b", tiny_adapters["lora-r8"])  # the same: mended
        assert (backend.registry.live("b").key, await backend.ask("b")) == (version.key, answer)
        await backend.lifecycle.settle()
        backend.check_integrity()


async def test_a_disk_that_is_away_spoils_no_adapter(
    tiny_base: Path, tiny_adapters: Mapping[str, Path], tmp_path: Path
) -> None:
    async with running(tiny_base, tmp_path) as (backend, _):
        version = await backend.lifecycle.install_copy("a", tiny_adapters["lora-r8"])
        answer = await backend.ask("a")
        await backend.residency.unload(version.key)
        packages = (tmp_path / "packages").rename(tmp_path / "elsewhere")
        with pytest.raises(StoreError, match="No such file"):
            await backend.ask("a")
        (tmp_path / "packages").touch()
        with pytest.raises(StoreError, match="Not a directory"):
            await backend.ask("a")
        (tmp_path / "packages").unlink()
        packages.rename(tmp_path / "packages")
        assert await backend.ask("a") == answer


async def test_files_that_are_out_of_sight_do_not_count_as_deleted(
    tiny_base: Path, tiny_adapters: Mapping[str, Path], tmp_path: Path
) -> None:
    async with running(tiny_base, tmp_path) as (backend, poller):
        version = await backend.lifecycle.install_copy("a", tiny_adapters["lora-r8"])
        packages = (tmp_path / "packages").rename(tmp_path / "elsewhere")
        (tmp_path / "packages").touch()
        assert backend.lifecycle.undeleted(await backend.lifecycle.remove("a", force=True))
        (tmp_path / "packages").unlink()
        packages.rename(tmp_path / "packages")
        assert version.path.exists()
        await poller.poll()
        await backend.lifecycle.settle()
        backend.check_integrity()


async def test_a_change_that_is_seen_while_the_engine_is_down_spoils_no_adapter(
    tiny_base: Path, tiny_adapters: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tiny_base, tmp_path) as (one, _), running(tiny_base, tmp_path) as (other, poller):
        await one.lifecycle.install_copy("a", tiny_adapters["lora-r8"])
        await poller.poll()
        await other.lifecycle.settle()
        await other.ask("a")
        await one.lifecycle.install_copy("a", tiny_adapters["lora-r4"])
        with monkeypatch.context() as patch:
            patch.setattr(other.client, "_ready", False)
            await poller.poll()
            await other.lifecycle.refresh("a")
        assert other.registry.live_number("a") == 2
        assert await other.ask("a") == await one.ask("a")


async def test_others_changes_are_seen_though_loading_takes_long(
    tiny_base: Path, tiny_adapters: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tiny_base, tmp_path) as (one, _), running(tiny_base, tmp_path) as (two, poller):
        await one.lifecycle.install_copy("json", tiny_adapters["lora-r8"])
        await poller.poll()
        await until(lambda: two.registry.live_number("json") == 1)
        first = await two.ask("json")
        go_on, load = asyncio.Event(), two.client.load_adapter

        async def slow(key: AdapterKey, path: Path, *, allow_noop: bool = False) -> AdapterLoaded:
            await go_on.wait()
            return await load(key, path, allow_noop=allow_noop)

        monkeypatch.setattr(two.client, "load_adapter", slow)
        await one.lifecycle.install_copy("json", tiny_adapters["lora-r4"])
        await poller.poll()
        async with asyncio.timeout(2 * LOAD_FIRST_SECONDS):
            await until(lambda: two.registry.live_number("json") == 2)
        asked = asyncio.create_task(two.ask("json"))
        await asyncio.sleep(0.05)
        assert not asked.done(), "what is asked now waits for the version that was named"
        go_on.set()
        assert await asked == await one.ask("json") != first


async def test_the_same_given_to_two_servers_at_once_is_one_version(
    tiny_base: Path, tiny_adapters: Mapping[str, Path], tmp_path: Path
) -> None:
    async with running(tiny_base, tmp_path) as (one, _), running(tiny_base, tmp_path) as (other, poller):
        package = tiny_adapters["lora-r8"]
        both = await asyncio.gather(*(backend.lifecycle.install_copy("a", package) for backend in (one, other)))
        assert both[0].key == both[1].key
        assert await one.ask("a") == await other.ask("a")
        await poller.poll()
        for backend in (one, other):
            await backend.lifecycle.settle()
            assert [version.key for version in backend.registry.versions("a")] == [both[0].key]


async def test_settings_are_durable(tiny_base: Path, tiny_adapters: Mapping[str, Path], tmp_path: Path) -> None:
    settings = NameSettings(pinned=True, weight=3.0)

    def mutate(history: VersionHistory) -> None:
        history.record.settings = settings

    async with running(tiny_base, tmp_path) as (backend, _):
        await backend.lifecycle.install_copy("json", tiny_adapters["lora-r8"])
        await backend.lifecycle.change("json", mutate, Event("set"))
        assert backend.registry.live("json")
    async with running(tiny_base, tmp_path) as (backend, _):
        history = backend.registry.history("json")
        assert history is not None
        assert history.record.settings == settings


async def test_what_a_killed_server_left_is_swept(
    tiny_base: Path, tiny_adapters: Mapping[str, Path], tmp_path: Path
) -> None:
    async with running(tiny_base, tmp_path) as (backend, _):
        version = await backend.lifecycle.install_copy("json", tiny_adapters["lora-r8"])
        package = backend.store.stage_copy(tiny_adapters["lora-r4"])
        _, arriving = backend.catalog.reserve("new", "d")
        left = backend.store.adopt(package, arriving)
        backend.catalog.change("json", lambda history: history.remove(), Event("remove"))
    async with running(tiny_base, tmp_path) as (backend, poller):
        assert version.path.exists()
        assert left.exists()
        for _ in range(2):  # seen, and seen not to have moved
            await poller.poll()
        await backend.lifecycle.settle()
        assert not version.path.exists()
        assert not left.exists()
        assert backend.registry.known_names() == []
        backend.check_integrity()
