"""Many uploads of one name at once, how many versions are kept, and removal that is hastened or half possible."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from server.catalog.installing import Upload
from server.catalog.polling import Poller
from server.catalog.versions import VersionState
from server.engine.messages import FinishReason, RequestOutput
from server.errors import ConflictError, UnknownModelError
from tests.server.catalog.spoil import read_only
from tests.server.catalog.support import Backend
from tests.server.engine.ipc.clients import request, until
from tests.server.live import slow_steps

LONG = 400
CONTENTS = ("lora-r4", "lora-r8", "lora-bias", "prefix-5", "prompt-7", "prefix-16")


async def upload(backend: Backend, package: Path, **options: Any) -> Upload | ConflictError:
    staged = await asyncio.to_thread(backend.store.stage_copy, package)
    try:
        return await backend.lifecycle.upload("json", staged, **options)
    except ConflictError as error:
        return error


def actions(results: list[Upload | ConflictError]) -> Counter[str | None]:
    return Counter(result.action if isinstance(result, Upload) else result.code for result in results)


async def test_a_new_name_is_given_once(backend: Backend, tiny_adapters: Mapping[str, Path]) -> None:
    results = await asyncio.gather(*(upload(backend, tiny_adapters[name]) for name in CONTENTS))
    assert actions(results) == {"load": 1, "adapter_exists": 5}
    assert [version.key.version for version in backend.registry.versions("json")] == [1]


async def test_a_repeated_upload_is_no_conflict(backend: Backend, tiny_adapters: Mapping[str, Path]) -> None:
    results = await asyncio.gather(*(upload(backend, tiny_adapters["lora-r4"]) for _ in range(12)))
    assert actions(results) == {"load": 1, "unchanged": 11}
    results = await asyncio.gather(*(upload(backend, tiny_adapters["lora-r8"], replace=True) for _ in range(3)))
    assert actions(results) == {"replace": 1, "unchanged": 2}
    results = await asyncio.gather(*(upload(backend, tiny_adapters["prefix-5"], activate=False) for _ in range(3)))
    assert actions(results) == {"candidate": 1, "unchanged": 2}
    assert actions([await upload(backend, tiny_adapters["prefix-5"])]) == {"adapter_exists": 1}, "it is not live"


async def test_the_first_that_is_sound_gets_the_name(
    backend: Backend, tiny_adapters: Mapping[str, Path], tmp_path: Path
) -> None:
    noop = tmp_path / "noop"
    noop.mkdir()
    for file in tiny_adapters["lora-r4"].iterdir():
        (noop / file.name).write_bytes(file.read_bytes())
    weights = noop / "adapter_model.safetensors"
    data = weights.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    weights.write_bytes(data[:header] + bytes(len(data) - header))  # answers as the base does: refused by the engine
    packages = [noop, *(tiny_adapters[name] for name in CONTENTS)]
    results = await asyncio.gather(*(upload(backend, package) for package in packages), return_exceptions=True)
    assert sum(isinstance(result, Upload) for result in results) == 1
    assert sum(isinstance(result, ConflictError) for result in results) >= 5


async def test_the_oldest_versions_that_nobody_uses_are_deleted(
    tiny_base: Path, tiny_adapters: Mapping[str, Path], tmp_path: Path
) -> None:
    backend = Backend(tiny_base, tmp_path / "store", max_versions=3)
    await backend.client.start()

    async def put(name: str, *, activate: bool = True) -> list[int]:
        done = await upload(backend, tiny_adapters[name], replace=True, activate=activate)
        assert isinstance(done, Upload)
        await backend.lifecycle.settle()
        return [version.key.version for version in done.evicted]

    assert [await put(name) for name in CONTENTS[:3]] == [[], [], []]
    await backend.lifecycle.rollback("json", 1)  # 1 is live, and 2 and 3 were after it
    await backend.lifecycle.settle()
    assert await put("prefix-5", activate=False) == [2]
    assert await put("prompt-7") == [3], "1 is what a rollback goes back to, 4 a candidate"
    assert await put("prefix-16") == [1]
    assert [v.key.version for v in backend.registry.versions("json")] == [4, 5, 6]
    backend.check_integrity()
    await backend.client.close()


async def rest_of(stream: object) -> list[RequestOutput]:
    return [output async for output in stream]  # type: ignore[attr-defined]


async def test_force_ends_what_drains(backend: Backend, tiny_adapters: Mapping[str, Path]) -> None:
    first = await backend.lifecycle.install_copy("json", tiny_adapters["lora-r8"])
    lease = backend.registry.lease("json")  # of a reader that takes nothing: it is not released
    with slow_steps():
        stream = backend.client.submit(request("r", lease.key, max_tokens=LONG))
        await anext(stream)
        lease.sequences = 1
        await backend.lifecycle.remove("json")
        with pytest.raises(
            UnknownModelError, match=r"'json' was removed\. .*1 sequences of it run still; DELETE .*force"
        ):
            await backend.lifecycle.remove("json")
        assert first.path.is_dir()
        assert await asyncio.wait_for(backend.lifecycle.remove("json", force=True), 60) == [first]
    assert (await rest_of(stream))[-1].finish_reason is FinishReason.ABORT
    assert not first.path.exists()
    assert backend.registry.leaving("json") == []
    with pytest.raises(UnknownModelError, match="'json' was removed"):
        await backend.lifecycle.remove("json", force=True)
    lease.release()


async def test_force_ends_one_version_that_drains(backend: Backend, tiny_adapters: Mapping[str, Path]) -> None:
    first = await backend.lifecycle.install_copy("json", tiny_adapters["lora-r8"])
    lease = backend.registry.lease("json")
    second = await backend.lifecycle.install_copy("json", tiny_adapters["lora-r4"])
    with slow_steps():
        stream = backend.client.submit(request("r", lease.key, max_tokens=LONG))
        await anext(stream)
        await backend.lifecycle.remove_version("json", 1)
        with pytest.raises(UnknownModelError, match=r"no version '1'\. It was deleted; .*force"):
            await backend.lifecycle.remove_version("json", 1)
        assert await asyncio.wait_for(backend.lifecycle.remove_version("json", 1, force=True), 60) == first
    assert (await rest_of(stream))[-1].finish_reason is FinishReason.ABORT
    assert not first.path.exists()
    assert backend.registry.live("json") == second
    lease.release()


async def test_force_ends_old_and_new(backend: Backend, tiny_adapters: Mapping[str, Path]) -> None:
    first = await backend.lifecycle.install_copy("json", tiny_adapters["lora-r8"])
    with backend.registry.lease("json"):
        await backend.lifecycle.remove("json")
        second = await backend.lifecycle.install_copy("json", tiny_adapters["lora-r4"])
        assert await asyncio.wait_for(backend.lifecycle.remove("json", force=True), 60) == [first, second]
        await asyncio.wait_for(backend.lifecycle.settle(), 60)


async def test_force_ends_what_the_engine_drains(backend: Backend, tiny_adapters: Mapping[str, Path]) -> None:
    version = await backend.lifecycle.install_copy("json", tiny_adapters["lora-r8"])
    with slow_steps():
        stream = backend.client.submit(request("unleased", version.key, max_tokens=LONG))
        await anext(stream)
        await backend.lifecycle.remove("json")
        await until(lambda: version.key not in backend.client.resident)  # the engine was asked, and waits
        await asyncio.wait_for(backend.lifecycle.remove("json", force=True), 60)
    assert (await rest_of(stream))[-1].finish_reason is FinishReason.ABORT


async def test_removal_from_a_disk_that_lets_nothing_go(backend: Backend, tiny_adapters: Mapping[str, Path]) -> None:
    first = await backend.lifecycle.install_copy("json", tiny_adapters["lora-r8"])
    second = await backend.lifecycle.install_copy("json", tiny_adapters["lora-r4"])
    with read_only(backend.root / "packages"):
        for remove in (backend.lifecycle.remove_version("json", 1, force=True), backend.lifecycle.remove("json")):
            await remove
            await backend.lifecycle.settle()
    assert backend.registry.known_names() == []
    assert backend.client.resident == frozenset()
    for version in (first, second):
        assert version.path.is_dir()
        (warning,) = backend.lifecycle.undeleted([version])
        assert f"{version.key}: its files are still there, in packages/{version.path.name}" in warning
    await Poller(backend.lifecycle).poll()
    assert not first.path.exists()
    assert not second.path.exists()
    third = await backend.lifecycle.install_copy("json", tiny_adapters["lora-r8"])
    assert (third.key.version, backend.registry.state(third.key)) == (3, VersionState.LIVE)
