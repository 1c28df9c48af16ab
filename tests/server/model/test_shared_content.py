"""What adapters have in common is in memory once, and goes with the last of them."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
from peft import RandLoraConfig, VeraConfig

from adapters.ops import Adapter, LowRank
from adapters.ops.low_rank import RandomBases, SharedLowRank
from server.adapter_key import AdapterKey
from server.model.adapter_pool import AdapterPool
from server.model.inputs import ModelInput, SequenceInput
from server.model.model_runner import ModelRunner
from server.model.shared_content import SharedContent
from tests import oracle
from tests.bounds import packed_logits
from tests.factory import make_adapter
from tests.server.model.support import make_runner

TARGETS = {"target_modules": ["q_proj", "o_proj"], "task_type": "CAUSAL_LM"}
CONFIGS = {"vera": VeraConfig(r=16, **TARGETS), "randlora": RandLoraConfig(r=8, **TARGETS)}
PROMPT = [10, 200, 33, 44, 99]


@pytest.fixture(scope="module")
def runner(tiny_base: Path) -> ModelRunner:
    return make_runner(tiny_base, "none")


def shared_of(adapter: Adapter) -> set[int]:
    return {tensor.data_ptr() for tensor in adapter.shared()}


@pytest.mark.numeric
@pytest.mark.parametrize("kind", CONFIGS)
def test_two_of_one_seed_share_factors_and_answer_as_alone(
    kind: str, runner: ModelRunner, tiny_base: Path, tmp_path: Path
) -> None:
    packages = [make_adapter(tiny_base, tmp_path / str(i), CONFIGS[kind], seed=i, std=0.3) for i in range(2)]
    first, second = (runner.prepare(package) for package in packages)
    assert shared_of(first.adapter) == shared_of(second.adapter)
    assert first.shared == second.shared
    common = sum(first.shared.values())
    assert 0 < common < first.adapter.nbytes
    keys = [AdapterKey(kind, i, kind) for i in (1, 2)]
    before = runner.adapter_bytes
    for key, adapter in zip(keys, (first.adapter, second.adapter), strict=True):
        runner.install(key, adapter)
    assert runner.adapter_bytes - before == first.adapter.nbytes + second.adapter.nbytes - common
    rows = [SequenceInput(key, PROMPT, 0, [2 * i, 2 * i + 1], [len(PROMPT) - 1]) for i, key in enumerate(keys)]
    mixed = runner.execute(ModelInput(rows))
    for package, logits in zip(packages, mixed, strict=True):
        want = oracle.logits(tiny_base, package, PROMPT, "none")[-1]
        torch.testing.assert_close(logits, want, rtol=0, atol=packed_logits("none"))
    runner.remove(keys[0])
    assert runner.adapter_bytes - before == second.adapter.nbytes, "the other has them still"
    runner.remove(keys[1])
    assert runner.adapter_bytes == before


def vera(a: torch.Tensor, b: torch.Tensor) -> Adapter:
    return Adapter("vera", {"q": (SharedLowRank(a, b, torch.randn(4), torch.randn(8)),)})


def test_equal_contents_are_placed_once_and_others_apart() -> None:
    content, placed = SharedContent(), []

    def place(tensor: torch.Tensor) -> torch.Tensor:
        placed.append(tensor.shape)
        return tensor.clone()

    a, b = torch.randn(8, 4), torch.randn(4, 8)
    one, shared = content.place(vera(a, b), place)
    two, same = content.place(vera(a.clone(), b.clone()), place)
    other, different = content.place(vera(a + 1, b), place)
    turned, _ = content.place(vera(a.reshape(4, 8), b), place)
    assert shared == same
    assert sum(shared.values()) == a.nbytes + b.nbytes
    assert len(shared.keys() & different.keys()) == 1
    assert len(placed) == 4 * 2 + 4, "each has two of its own, and there are four different shared ones"
    for left, right, equal in ((one, two, 2), (one, other, 1), (one, turned, 1)):
        assert len(shared_of(left) & shared_of(right)) == equal
    assert {p.shape for p in turned.shared()} == {(4, 8)}


def test_what_nobody_has_any_more_is_placed_anew() -> None:
    content, a, b = SharedContent(), torch.randn(8, 4), torch.randn(4, 8)
    one, _ = content.place(vera(a, b), torch.clone)
    del one
    gc.collect()
    assert len(content) == 0


def test_what_is_an_adapters_own_is_never_shared() -> None:
    factors = torch.randn(8, 4), torch.randn(4, 8)
    content = SharedContent()
    one, shared = content.place(Adapter("lora", {"q": (LowRank(*factors),)}), torch.clone)
    two, _ = content.place(Adapter("lora", {"q": (LowRank(*factors),)}), torch.clone)
    assert shared == {}
    assert not {t.data_ptr() for t in one.tensors()} & {t.data_ptr() for t in two.tensors()}


def test_a_pool_counts_what_is_shared_once() -> None:
    pool, content = AdapterPool(), SharedContent()
    bases = torch.randn(4, 8), torch.randn(8, 8)
    made = [
        Adapter("randlora", {"q": (RandomBases(*bases, torch.randn(4, 2), torch.randn(2, 8), 8),)}) for _ in range(3)
    ]
    keys = [AdapterKey("r", number, "") for number in (1, 2, 3)]
    for key, adapter in zip(keys, made, strict=True):
        pool.add(key, content.place(adapter, torch.clone)[0])
    own, common = (4 * 2 + 2 * 8) * 4, (4 * 8 + 8 * 8) * 4
    assert pool.nbytes == 3 * own + common
    pool.remove(keys[0])
    assert pool.nbytes == 2 * own + common
    pool.remove(keys[2])
    pool.remove(keys[1])
    assert pool.nbytes == 0
