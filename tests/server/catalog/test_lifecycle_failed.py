"""Versions whose files are not, or no longer, what was uploaded: never served as if they were, and mended."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path

import pytest
from typing_extensions import override

from adapters.errors import PackageChangedError
from server.catalog.store import AdapterStore
from server.catalog.versions import VersionState
from server.engine.ipc.process_client import ProcessEngineClient, RestartPolicy
from server.errors import AdapterFailedError, UnknownModelError
from tests.server.catalog.spoil import SPOILS, WEIGHTS, flip_a_bit
from tests.server.catalog.support import Backend
from tests.server.engine.ipc.clients import config_for, until


async def restart(backend: Backend) -> None:
    """Another engine, and what was resident is so again, as far as it can be."""
    client = backend.client
    assert isinstance(client, ProcessEngineClient)
    assert client.pid is not None
    os.kill(client.pid, signal.SIGKILL)
    await until(lambda: not client.ready)
    await until(lambda: client.ready)
    await backend.residency.settle()


@pytest.mark.slow
async def test_what_changed_on_the_disk_is_not_served_after_a_restart(
    tiny_base: Path, tiny_adapters: Mapping[str, Path], tmp_path: Path
) -> None:
    policy = RestartPolicy(first_delay=0.01, quick_failures=3, slow_delay=0.02)
    client = ProcessEngineClient(config_for(tiny_base), policy=policy)
    backend = Backend(tiny_base, tmp_path / "store", client)
    lifecycle, registry, source = backend.lifecycle, backend.registry, tiny_adapters["lora-r4"]
    await client.start()
    try:
        await lifecycle.install_copy("sound", source)
        before, base = await backend.ask("sound"), await backend.ask("base")
        versions = {name: await lifecycle.install_copy(name.replace(" ", "-"), source) for name in SPOILS}
        candidate = await lifecycle.install_copy("sound", tiny_adapters["lora-r8"], activate=False)
        judged = await backend.ask("sound@2")
        for how, (spoil, _) in SPOILS.items():
            spoil(versions[how].path)
        flip_a_bit(candidate.path)
        await restart(backend)

        assert await backend.ask("sound") == before, "others are served"
        assert await backend.ask("base") == base
        for how, (_, reason) in SPOILS.items():
            key = versions[how].key
            assert registry.state(key) is VersionState.FAILED, how
            assert reason in (registry.failure(key) or ""), how
            for model in (key.name, str(key)):
                with pytest.raises(AdapterFailedError, match=f"{key} cannot be loaded: .*{reason}"):
                    await backend.ask(model)
        with pytest.raises(AdapterFailedError, match="sound@2 cannot be loaded"):
            await backend.ask("sound@2")
        assert registry.names() == ["sound"]
        assert registry.counts() == {VersionState.LIVE: 1, VersionState.FAILED: len(SPOILS) + 1}

        with pytest.raises(AdapterFailedError):  # what it has is tried again, and is no better
            await lifecycle.activate("a-bit", 1)
        for name in (how.replace(" ", "-") for how in SPOILS):
            restored = await lifecycle.install_copy(name, source)
            assert (restored.key.version, registry.state(restored.key)) == (1, VersionState.LIVE), name
            assert await backend.ask(name) == before
        again = await lifecycle.install_copy("sound", tiny_adapters["lora-r8"], activate=False)
        assert registry.state(again.key) is VersionState.CANDIDATE
        assert await backend.ask("sound@2") == judged
        await restart(backend)  # from the new files
        assert await backend.ask("a-bit") == await backend.ask("no-folder@1") == before
        await lifecycle.settle()
        backend.check_integrity()
    finally:
        await client.close()


async def test_what_is_resident_does_not_change_with_its_files(
    backend: Backend, tiny_adapters: Mapping[str, Path]
) -> None:
    version = await backend.lifecycle.install_copy("json", tiny_adapters["lora-r8"])
    before = await backend.ask("json")
    weights = version.path / WEIGHTS
    data = weights.read_bytes()
    with weights.open("r+b") as file:  # in place
        file.seek(len(data) // 2)
        file.write(bytes(len(data) - len(data) // 2))
    assert await backend.ask("json") == before
    os.truncate(weights, 8)
    assert await backend.ask("json") == before

    assert await backend.lifecycle.install_copy("json", tiny_adapters["lora-r8"]) is not version
    mended = backend.registry.live("json")
    assert (mended.key, mended.path.exists(), version.path.exists()) == (version.key, True, False)
    assert (mended.path / WEIGHTS).read_bytes() == data
    assert await backend.ask("json") == before
    assert backend.witness.loaded == [version.key]


async def test_a_stored_version_that_changed_is_not_activated(
    backend: Backend, tiny_adapters: Mapping[str, Path]
) -> None:
    first = await backend.lifecycle.install_copy("json", tiny_adapters["lora-r8"])
    old = await backend.ask("json")
    second = await backend.lifecycle.install_copy("json", tiny_adapters["lora-r4"])
    new = await backend.ask("json")
    await backend.lifecycle.settle()
    flip_a_bit(first.path)
    for change in (backend.lifecycle.activate("json", 1), backend.lifecycle.rollback("json")):
        with pytest.raises(AdapterFailedError, match=r"json@1 cannot be loaded: .*not those that were uploaded"):
            await change
    assert (backend.registry.live("json"), await backend.ask("json")) == (second, new)
    assert backend.registry.state(first.key) is VersionState.FAILED
    with pytest.raises(AdapterFailedError, match="json@1 cannot be loaded"):
        await backend.ask("json@1")

    flip_a_bit(first.path)  # as it was
    assert (await backend.lifecycle.rollback("json")).version == first
    assert await backend.ask("json") == old
    await backend.lifecycle.activate("json", 2)
    await backend.lifecycle.settle()
    assert backend.registry.state(first.key) is VersionState.STORED
    with pytest.raises(UnknownModelError, match="not being served"):
        await backend.ask("json@1")

    shutil.rmtree(first.path)
    with pytest.raises(AdapterFailedError):
        await backend.lifecycle.rollback("json", 1)
    restored = await backend.lifecycle.install_copy("json", tiny_adapters["lora-r8"])
    assert restored.key == first.key
    assert await backend.ask("json") == await backend.ask("json@1") == old
    assert backend.witness.changes[-1] == "replace"


async def test_a_live_version_that_failed_can_be_left_and_removed(
    backend: Backend, tiny_adapters: Mapping[str, Path]
) -> None:
    lifecycle = backend.lifecycle
    first = await lifecycle.install_copy("json", tiny_adapters["lora-r8"])
    old = await backend.ask("json")
    second = await lifecycle.install_copy("json", tiny_adapters["lora-r4"])
    await lifecycle.settle()
    await backend.residency.unload(second.key)  # as after a restart that did not bring it back
    backend.registry.failed(second.key, "its files are gone")
    assert (backend.registry.names(), backend.registry.known_names()) == ([], ["json"])
    assert (await lifecycle.rollback("json", expected_live=2)).version == first
    assert await backend.ask("json") == old
    await lifecycle.settle()
    assert backend.registry.state(second.key) is VersionState.FAILED
    await lifecycle.remove_version("json", 2)
    await lifecycle.settle()  # else removing by force would hasten, and name, this one too
    backend.registry.failed(second.key, "late")  # nothing is known of it any more
    assert [version.key.version for version in backend.registry.versions("json")] == [1]

    await backend.residency.unload(first.key)
    backend.registry.failed(first.key, "its files are gone")
    assert (await lifecycle.activate("json", 1)).changed, "they are there, in truth"
    assert await backend.ask("json") == old
    assert await lifecycle.remove("json", force=True) == [first]


async def test_a_package_that_changes_before_its_first_load_is_refused(
    tiny_base: Path, tiny_adapters: Mapping[str, Path], tmp_path: Path
) -> None:
    class Spoiling(AdapterStore):
        @override
        def adopt(self, package: Path, name: str | None = None) -> Path:
            place = super().adopt(package, name)
            flip_a_bit(place)
            return place

    backend = Backend(tiny_base, tmp_path / "store", store=Spoiling(tmp_path / "store"))
    await backend.client.start()
    with pytest.raises(PackageChangedError, match="not those that were uploaded"):
        await backend.lifecycle.install_copy("json", tiny_adapters["lora-r8"])
    backend.check_integrity()
    assert backend.registry.known_names() == []
    await backend.client.close()
