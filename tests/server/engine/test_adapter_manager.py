"""Residency: who may drop an adapter, and when. What the engine does with it is in test_engine."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typing_extensions import override

from server.adapter_key import AdapterKey
from server.engine.adapter_manager import AdapterManager, Loading
from server.engine.block_manager import BlockManager
from server.engine.messages import AdapterFailed, AdapterLoaded, AdapterUnloaded
from server.engine.scheduler import Scheduler, SchedulerConfig
from server.engine.verification import AdapterVerification
from server.model.prepared import PreparedAdapter
from tests.server.engine.harness import DEADLINE
from tests.server.engine.requests import make_request
from tests.server.engine.toy_runner import ToyRunner, make_package

KEY = AdapterKey("a", 1, "digest")


@pytest.fixture
def scheduler() -> Scheduler:
    runner = ToyRunner()
    return Scheduler(SchedulerConfig(16, 4), BlockManager(runner.num_blocks, runner.block_size))


@pytest.fixture
def manager(scheduler: Scheduler) -> Iterator[AdapterManager]:
    manager = AdapterManager(ToyRunner(), scheduler)
    yield manager
    manager.check_integrity()
    manager.close()


def load(manager: AdapterManager, path: Path) -> None:
    manager.load(KEY, path)
    assert manager.has_work
    manager.wait(DEADLINE)
    assert manager.install_prepared() == [KEY]


def test_life_of_an_adapter(manager: AdapterManager, scheduler: Scheduler, tmp_path: Path) -> None:
    requests = {name: make_request(name, adapter=KEY) for name in ("r1", "r2", "r3")}

    def end(name: str) -> None:
        scheduler.remove(requests[name])
        manager.settle(KEY)

    assert not manager.knows(KEY)
    load(manager, make_package(tmp_path / "p", "prefix"))
    assert manager.num_resident == 1
    assert manager.knows(KEY)
    scheduler.add(requests["r1"])
    scheduler.add(requests["r2"])
    assert scheduler.users(KEY) == ["r1", "r2"]
    manager.unload(KEY)
    end("r1")
    assert manager.num_resident == 1
    assert manager.knows(KEY), "resolved before the unload, arrived after it"
    scheduler.add(requests["r3"])
    end("r2")
    end("r3")
    assert manager.num_resident == 0
    assert [type(event) for event in manager.events] == [AdapterLoaded, AdapterUnloaded]
    assert not manager.knows(KEY)


def test_what_verified_an_adapter_is_gone_at_once(manager: AdapterManager, tmp_path: Path) -> None:
    """Its logits take more than many an adapter does."""
    before = verifications()
    gc.disable()
    try:
        load(manager, make_package(tmp_path / "p", "lora"))
        assert verifications() == before
    finally:
        gc.enable()


def verifications() -> int:
    return sum(isinstance(found, Loading | AdapterVerification) for found in gc.get_objects())


def test_same_key_can_come_back(manager: AdapterManager, tmp_path: Path) -> None:
    package = make_package(tmp_path / "p", "lora")
    for _ in range(2):
        load(manager, package)
        manager.unload(KEY)
        assert manager.num_resident == 0


def test_loads_of_a_key_under_way_are_joined(manager: AdapterManager, tmp_path: Path) -> None:
    package = make_package(tmp_path / "p", "lora")
    manager.load(KEY, package)
    load(manager, package)
    assert len(manager.events) == 1


@pytest.mark.parametrize(
    ("error", "code", "word"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "adapter_memory_exceeded", "no memory left"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "adapter_memory_exceeded", "no memory left"),
        (PermissionError(13, "Permission denied"), "invalid_adapter_package", "cannot be read: Permission denied"),
        (ZeroDivisionError("a mistake of ours"), "invalid_adapter", "log says why"),
    ],
)
def test_what_keeps_an_adapter_from_loading_is_told(
    scheduler: Scheduler, tmp_path: Path, error: Exception, code: str, word: str
) -> None:
    class Failing(ToyRunner):
        @override
        def prepare(self, path: Path, digest: str = "") -> PreparedAdapter:
            raise error

    manager = AdapterManager(Failing(), scheduler)
    load(manager, tmp_path)
    (event,) = manager.events
    assert isinstance(event, AdapterFailed)
    assert event.code == code
    assert word in event.message
    assert not manager.knows(KEY)
    manager.close()


def test_other_content_than_the_keys_is_refused_before_it_is_installed(scheduler: Scheduler, tmp_path: Path) -> None:
    class Reading(ToyRunner):
        @override
        def prepare(self, path: Path, digest: str = "") -> PreparedAdapter:
            return replace(super().prepare(path), digest=path.name)

    runner = Reading()
    checking = AdapterManager(runner, scheduler)
    load(checking, make_package(tmp_path / "changed", "lora"))
    (event,) = checking.events
    assert isinstance(event, AdapterFailed)
    assert (event.code, runner.adapters) == ("adapter_changed", {})
    checking.events.clear()
    load(checking, make_package(tmp_path / "digest", "lora"))  # the key's
    assert [type(event) for event in checking.events] == [AdapterLoaded]
    checking.close()


def test_waiting_for_nothing_returns(manager: AdapterManager) -> None:
    manager.wait(DEADLINE)
    assert not manager.has_work
    assert manager.install_prepared() == []
