"""A folder is kept as it is: packages that come, in whatever way and order, change, go and come back."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from adapters.package.archive import pack
from server.catalog.versions import VersionState
from server.catalog.watching import Watcher
from server.errors import BudgetError
from tests.server.catalog.support import Backend

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


class Watched:
    """A watched folder, looked at when it is told to."""

    def __init__(self, backend: Backend, folder: Path, packages: Mapping[str, Path]) -> None:
        self.backend = backend
        self.folder = folder
        self._packages = packages
        self.watcher = Watcher(backend.lifecycle, folder)

    async def look(self, times: int = 2) -> None:
        for _ in range(times):
            await self.watcher.poll()

    def put(self, kind: str, name: str = "json") -> Path:
        """A package, all at once."""
        scratch = self.folder.parent / "scratch"
        shutil.copytree(self._packages[kind], scratch)
        shutil.rmtree(self.folder / name, ignore_errors=True)
        scratch.rename(self.folder / name)
        return self.folder / name

    def versions(self, name: str = "json") -> list[int]:
        registry = self.backend.registry
        return [v.key.version for v in registry.versions(name)] if name in registry.known_names() else []

    def live(self, name: str = "json") -> int | None:
        return self.backend.registry.live_number(name)

    def again(self) -> None:
        """As after a restart."""
        self.watcher = Watcher(self.backend.lifecycle, self.folder)


@pytest.fixture
def watched(
    backend: Backend, tiny_adapters: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Watched:
    monkeypatch.setattr("server.catalog.watching.watcher.AT_REST", 1)
    (tmp_path / "watched").mkdir()
    return Watched(backend, tmp_path / "watched", tiny_adapters)


def refusals(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    lines = [record.__dict__["fields"] for record in caplog.records if record.name == "server.audit"]
    return [line for line in lines if line["action"] == "refuse"]


async def test_what_comes_changes_and_goes(watched: Watched, tiny_adapters: Mapping[str, Path]) -> None:
    pack(tiny_adapters["lora-r8"], watched.folder / "other.tar")
    (watched.folder / "notes.txt").write_text("none of ours")
    (watched.folder / ".hidden").mkdir()
    watched.put("lora-r4")
    await watched.look(1)
    assert watched.backend.registry.names() == [], "it may still be coming"
    await watched.look(1)
    assert watched.backend.registry.names() == ["json", "other"]
    first = await watched.backend.ask("json")
    watched.put("lora-r8")
    (watched.folder / "other.tar").unlink()
    await watched.look()
    assert watched.live() == 2
    assert await watched.backend.ask("json") != first
    assert watched.backend.registry.names() == ["json"]
    watched.put("lora-r4")
    await watched.look()
    assert await watched.backend.ask("json") == first
    shutil.rmtree(watched.folder / "json")
    await watched.look(1)
    assert watched.live() == 3, "it may be in the middle of an exchange"
    await watched.look(1)
    assert watched.backend.registry.names() == []


async def test_requests_that_run_end_before_a_package_that_is_gone_does(watched: Watched) -> None:
    watched.put("lora-r4")
    await watched.look()
    with watched.backend.registry.lease("json") as lease:
        shutil.rmtree(watched.folder / "json")
        await watched.look()
        assert watched.backend.registry.names() == []
        assert lease.key in watched.backend.client.resident
    await watched.backend.lifecycle.settle()
    assert not watched.backend.client.resident


@pytest.mark.parametrize("order", [(CONFIG, WEIGHTS), (WEIGHTS, CONFIG)])
async def test_a_slow_copy_is_taken_when_it_is_whole(
    watched: Watched, tiny_adapters: Mapping[str, Path], order: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    target = watched.folder / "json"
    target.mkdir()
    await watched.look(4)
    for file in order:
        data = (tiny_adapters["lora-r4"] / file).read_bytes()
        third = len(data) // 3 + 1
        for begin in range(0, len(data), third):
            assert watched.versions() == []
            with (target / file).open("ab") as out:
                out.write(data[begin : begin + third])
            await watched.look(3)
    assert watched.versions() == [1]
    assert refusals(caplog) == []


async def test_a_change_file_by_file_is_one_of_wholes(watched: Watched, tiny_adapters: Mapping[str, Path]) -> None:
    target = watched.put("lora-r4")
    await watched.look()
    first = await watched.backend.ask("json")
    new = tiny_adapters["lora-r8"]
    data = (new / WEIGHTS).read_bytes()
    (target / WEIGHTS).write_bytes(data[: len(data) // 2])
    await watched.look(3)
    assert (watched.live(), await watched.backend.ask("json")) == (1, first)
    scratch = target / f".{CONFIG}.k3Xz9Q"
    scratch.write_text("half")  # as rsync does
    (target / WEIGHTS).write_bytes(data)
    await watched.look(9)
    assert watched.live() == 1
    scratch.write_bytes((new / CONFIG).read_bytes())
    scratch.rename(target / CONFIG)
    await watched.look()
    assert watched.versions() == [1, 2]


async def test_new_files_beside_old_ones_are_waited_for(
    watched: Watched, tiny_adapters: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    target = watched.put("lora-r4")
    await watched.look()
    config = (target / CONFIG).read_text()
    (target / CONFIG).write_text(config.replace('"lora_alpha": ', '"lora_alpha": 1'))  # sound, and of the next version
    await watched.look(4)
    assert watched.versions() == [1]
    (target / WEIGHTS).write_bytes((target / WEIGHTS).read_bytes())
    await watched.look()
    assert watched.versions() == [1, 2]
    (target / CONFIG).write_text(config)
    await watched.look(6)
    assert watched.versions() == [1, 2, 3], "the other one stays as it is"


async def test_what_changes_while_it_is_copied_waits(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    target, store = watched.put("lora-r4"), watched.backend.store
    real = store.stage_copy

    def copy(source: Path) -> Path:
        staged = real(source)
        if not watched.versions() and (target / "chat_template.jinja").exists() is False:
            (target / "chat_template.jinja").write_text("{{ messages }}")
        return staged

    monkeypatch.setattr(store, "stage_copy", copy)
    await watched.look(3)
    assert watched.versions() == [], "it comes to rest anew"
    await watched.look(1)
    assert watched.versions() == [1]


async def test_the_same_content_is_the_same_version(watched: Watched) -> None:
    target = watched.put("lora-r4")
    await watched.look()
    os.utime(target / WEIGHTS)
    await watched.look(7)
    watched.put("lora-r4")
    (target / "README.md").write_text("new")
    await watched.look(7)
    assert watched.versions() == [1]
    watched.again()
    await watched.look(3)
    os.utime(target / WEIGHTS, (1, 1))
    await watched.look(7)
    assert watched.versions() == [1]


async def test_a_start_without_memory_knows_by_the_catalog(watched: Watched) -> None:
    watched.put("lora-r4")
    await watched.look()
    await watched.backend.lifecycle.install_copy("json", watched._packages["lora-r8"])
    shutil.rmtree(watched.backend.root / "watched")
    watched.again()
    await watched.look(3)
    assert (watched.versions(), watched.live()) == ([1, 2], 2)


async def test_a_bad_package_is_refused_once_and_tried_again_when_it_changes(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "server.audit")
    target = watched.put("lora-r4", "bad")
    (target / WEIGHTS).write_bytes(b"no weights")
    (watched.folder / "junk.zip").write_bytes(b"no archive")
    shutil.copytree(target, watched.folder / "no name")
    watched.put("lora-r8", "good")
    await watched.look(12)
    assert watched.backend.registry.names() == ["good"]
    assert sorted(line["adapter"] for line in refusals(caplog)) == ["bad", "junk", "no name"]
    watched.again()
    await watched.look(8)
    assert len(refusals(caplog)) == 3, "nor by the next server"
    watched.put("lora-r4", "bad")
    await watched.look(6)
    assert watched.backend.registry.names() == ["bad", "good"]


async def test_a_name_that_was_removed_stays_so_until_its_package_changes(watched: Watched) -> None:
    target = watched.put("lora-r4")
    await watched.look()
    await watched.backend.lifecycle.remove("json", force=True)
    await watched.look(3)
    watched.again()
    await watched.look(3)
    os.utime(target / WEIGHTS)
    await watched.look(7)
    assert watched.versions() == []
    watched.put("lora-r8")
    await watched.look()
    assert watched.live() == 2


async def test_what_others_put_in_its_place_stays(watched: Watched) -> None:
    watched.put("lora-r4")
    await watched.look()
    await watched.backend.lifecycle.install_copy("json", watched._packages["lora-r8"])
    await watched.look(3)
    shutil.rmtree(watched.folder / "json")
    await watched.look(3)
    assert watched.live() == 2
    watched.put("lora-r4")
    await watched.look()
    assert watched.live() in (1, 3)
    await watched.backend.lifecycle.rollback("json")
    watched.again()
    await watched.look(3)
    assert watched.live() == 2


async def test_a_folder_that_is_not_there_says_nothing_of_its_packages(watched: Watched, tmp_path: Path) -> None:
    watched.put("lora-r4")
    await watched.look()
    watched.folder.rename(tmp_path / "away")
    await watched.look(5)
    assert watched.live() == 1
    (tmp_path / "away").rename(watched.folder)
    await watched.look(3)
    shutil.rmtree(watched.folder / "json")
    await watched.look()
    assert watched.live() is None


async def test_what_goes_while_no_server_runs_is_drained_by_the_next(watched: Watched) -> None:
    watched.put("lora-r4")
    await watched.look()
    shutil.rmtree(watched.folder / "json")
    watched.again()
    await watched.look()
    assert watched.live() is None


async def test_what_this_server_cannot_do_is_tried_again(
    watched: Watched, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    watched.put("lora-r4")
    real = watched.backend.store.adopt

    def full(package: Path, name: str | None = None) -> Path:
        raise BudgetError("no room", code="storage_budget_exceeded")

    monkeypatch.setattr(watched.backend.store, "adopt", full)
    await watched.look(10)
    assert watched.versions() == []
    assert refusals(caplog) == []
    monkeypatch.setattr(watched.backend.store, "adopt", real)
    await watched.look(16)
    assert watched.backend.registry.state(watched.backend.registry.live("json").key) is VersionState.LIVE


async def test_a_link_that_is_turned_is_a_change(watched: Watched, tmp_path: Path) -> None:
    for kind in ("lora-r4", "lora-r8"):
        shutil.copytree(watched._packages[kind], tmp_path / kind)
    (watched.folder / "json").symlink_to(tmp_path / "lora-r4")
    await watched.look()
    (watched.folder / "json.new").symlink_to(tmp_path / "lora-r8")
    (watched.folder / "json.new").rename(watched.folder / "json")
    await watched.look()
    assert watched.live() == 2
