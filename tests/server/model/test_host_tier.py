"""What has left the device comes back from host memory without its files, and is what it was."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from adapters.errors import PackageError
from adapters.ops import Adapter, LowRank
from adapters.package.inspection import inspect_package
from server.adapter_key import AdapterKey
from server.model.host_tier import HostTier
from server.model.inputs import ModelInput, SequenceInput
from server.model.model_runner import ModelRunner
from server.model.prepared import PreparedAdapter
from tests.server.model.support import make_runner

PROMPT = [10, 200, 33, 44, 99]


def prepared(seed: int, rank: int = 1) -> PreparedAdapter:
    generator = torch.Generator().manual_seed(seed)
    factors = torch.randn(8, rank, generator=generator), torch.randn(rank, 8, generator=generator)
    return PreparedAdapter(Adapter("lora", {"q": (LowRank(*factors),)}), {"read": 1.0, "validate": 1.0})


WEIGHT = prepared(0).adapter.nbytes


def test_the_least_recently_used_goes_when_it_is_full() -> None:
    tier = HostTier(3 * WEIGHT)
    for name in "abc":
        tier.put(name, prepared(1))
    assert tier.get("a") is not None
    tier.put("d", prepared(1))
    assert [name for name in "abcd" if tier.get(name)] == ["a", "c", "d"]
    tier.put("two", prepared(1, rank=2))
    assert (len(tier), tier.nbytes) == (2, 3 * WEIGHT)
    tier.put("two", prepared(2, rank=2))
    assert (len(tier), tier.nbytes) == (2, 3 * WEIGHT)


def test_one_that_is_too_large_moves_nobody_out() -> None:
    tier = HostTier(2 * WEIGHT)
    tier.put("a", prepared(1))
    assert tier.put("large", prepared(1, rank=3)).adapter.nbytes == 3 * WEIGHT
    assert tier.get("large") is None
    assert tier.get("a") is not None


@pytest.fixture
def runner(tiny_base: Path) -> ModelRunner:
    """A device that has memory of its own, as far as a CPU can be one: what is placed on it is copied."""
    made = make_runner(tiny_base, "none")
    made.host = HostTier(1 << 30)
    return made


def logits(runner: ModelRunner, key: AdapterKey) -> torch.Tensor:
    return runner.execute(ModelInput([SequenceInput(key, PROMPT, 0, [0, 1], [len(PROMPT) - 1])]))


def test_it_comes_back_without_its_files(
    runner: ModelRunner, tiny_adapters: Mapping[str, Path], tmp_path: Path
) -> None:
    package = tmp_path / "package"
    shutil.copytree(tiny_adapters["lora-r8"], package)
    key = AdapterKey("a", 1, inspect_package(package).digest)
    first = runner.prepare(package, key.digest)
    assert {"read", "validate", "copy"} <= first.seconds.keys()
    runner.install(key, first.adapter)
    before = logits(runner, key)
    runner.remove(key)
    shutil.rmtree(package)
    again = runner.prepare(package, key.digest)
    assert again.seconds.keys() == {"copy"}
    assert (again.digest, again.warnings) == (first.digest, first.warnings)
    runner.install(key, again.adapter)
    assert torch.equal(logits(runner, key), before)
    runner.remove(key)
    with pytest.raises(PackageError):
        runner.prepare(package, "another content")


def test_on_the_cpu_host_memory_is_the_devices(tiny_base: Path) -> None:
    assert make_runner(tiny_base, "none").host is None
