"""ModelRunner against peft running each row's adapter alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig

from adapters.errors import AdapterError
from adapters.ops import Adapter, LowRank
from server.adapter_key import AdapterKey
from server.config import EngineConfig
from server.errors import EngineStartError
from server.model.inputs import ModelInput, SequenceInput
from server.model.model_runner import load_runner
from tests import oracle
from tests.factory import make_adapter, make_base
from tests.kinds import CASES
from tests.server.model.bench import TOLERANCE, Bench

pytestmark = pytest.mark.numeric


@pytest.fixture(scope="module")
def shared_bench(tiny_base: Path, tiny_adapters: Mapping[str, Path]) -> Bench:
    return Bench(tiny_base, tiny_adapters)


@pytest.fixture
def bench(shared_bench: Bench) -> Bench:
    shared_bench.next_block = 0
    return shared_bench


@pytest.mark.parametrize("name", [None, *CASES])
def test_every_kind_alone(name: str | None, tiny_base: Path, tiny_adapters: Mapping[str, Path]) -> None:
    bench = Bench(tiny_base, {name: tiny_adapters[name]} if name else {})
    row = bench.row(name, 12, 7)
    bench.step([row], [row.virtual - row.done + 9])
    bench.step([row], [1])
    bench.step([row], [1])


def test_every_kind_in_one_batch(bench: Bench) -> None:
    names = [None, *bench.adapters, None, "lora-r8", "prefix-21"]
    rows = [bench.row(name, 14, seed) for seed, name in enumerate(names)]
    bench.step(rows, [r.virtual - r.done + 3 + i % 7 for i, r in enumerate(rows)])
    for _ in range(3):
        bench.step(rows, [1] * len(rows))


def test_chunked_prefill_mixed_with_decode(bench: Bench) -> None:
    names = ["lora-r8", "prefix-5", "prompt-20", None, "lora-r8", "lora-r4"]
    rows = [bench.row(name, 30, seed) for seed, name in enumerate(names)]
    bench.step(rows[:3], [5, 4, 7])  # the prompt adapter's virtual tokens are cut in two
    bench.step(rows, [1, 11, 17, 12, 13, 2])
    bench.step(rows, [9, 1, 1, 1, 12, 1])
    bench.step(rows[::-1], [1] * len(rows))


def test_a_row_does_not_depend_on_its_neighbours(bench: Bench) -> None:
    alone = bench.row("lora-r8", 10, 3)
    first = bench.runner.execute(ModelInput([alone.take(10)]))[0]
    rows = [bench.row(name, 10, 3 if name == "lora-r8" else i) for i, name in enumerate(bench.adapters)]
    mixed = bench.runner.execute(ModelInput([r.take(r.virtual + 10 - r.done) for r in rows]))
    at = list(bench.adapters).index("lora-r8")
    torch.testing.assert_close(mixed[at], first, rtol=0, atol=TOLERANCE)


def test_block_copies_happen_before_the_step(bench: Bench) -> None:
    row = bench.row("lora-r4", 10, 1)
    bench.step([row], [8])
    moved = [b + 50 for b in row.blocks]
    copies = list(zip(row.blocks, moved, strict=True))
    row.blocks = moved
    got = bench.runner.execute(ModelInput([row.take(1)], copies))[0]
    want = oracle.logits(bench.base, row.adapter, row.fed)[-1]
    torch.testing.assert_close(got, want, rtol=0, atol=TOLERANCE)


def test_logits_at_several_positions(bench: Bench) -> None:
    row = bench.row("lora-r8", 9, 5)
    taken = row.take(9)
    sequence = SequenceInput(taken.adapter, taken.token_ids, 0, taken.block_table, list(range(9)))
    got = bench.runner.execute(ModelInput([sequence]))
    want = oracle.logits(bench.base, row.adapter, row.tokens)
    torch.testing.assert_close(got, want, rtol=0, atol=TOLERANCE)


ARCHITECTURES: dict[str, dict[str, Any]] = {
    "gpt2": {"num_key_value_heads": None},
    "opt": {"num_key_value_heads": None, "head_dim": None},
    "qwen3": {},
    "gemma2": {"sliding_window": 6},
    "mistral": {"sliding_window": 6},
}


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_other_architectures(model_type: str, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", model_type=model_type, **ARCHITECTURES[model_type])
    lora = LoraConfig(r=4, target_modules="all-linear", fan_in_fan_out=model_type == "gpt2", task_type="CAUSAL_LM")
    prefix = PrefixTuningConfig(num_virtual_tokens=6, task_type="CAUSAL_LM")
    adapters = {"lora": make_adapter(base, tmp_path / "lora", lora)}
    if "sliding_window" not in ARCHITECTURES[model_type]:  # peft's own prefix cache ignores sliding windows
        adapters["prefix"] = make_adapter(base, tmp_path / "prefix", prefix, std=0.3)
    bench = Bench(base, adapters)
    rows = [bench.row(name, 20, seed) for seed, name in enumerate([None, *adapters])]
    bench.step(rows, [9] * len(rows))
    bench.step(rows, [5] + [1] * (len(rows) - 1))
    bench.step(rows, [1] * len(rows))


def test_a_broken_adapters_rows_leave_the_others_alone(bench: Bench) -> None:
    """Values that are not finite stay in the cache after their row is gone; no other row may read them."""
    key = AdapterKey("broken", 1, "broken")
    name = "model.layers.0.mlp.down_proj"  # so that the next layer stores NaN
    out, in_ = bench.runner.spec.linears[name]
    bench.runner.install(key, Adapter("lora", {name: (LowRank(torch.ones(in_, 2), torch.full((2, out), torch.nan)),)}))
    broken = SequenceInput(key, [1, 2, 3, 4, 5, 6], 0, [0, 1], [5])  # block 0 is also what padding might read
    bench.next_block = 2
    long, short = bench.row("lora-r8", 20, 1), bench.row(None, 9, 2)
    first = bench.runner.execute(ModelInput([broken, long.take(12), short.take(4)]))
    assert torch.isnan(first[0]).all()
    assert torch.isfinite(first[1:]).all()
    bench.step([long, short], [1, 1])
    bench.runner.remove(key)
    reused = bench.row("lora-r4", 6, 3)
    reused.blocks = [0, 1]
    bench.step([reused, long], [3, 1])
    bench.step([reused, short], [1, 1])


def test_removing_an_adapter_leaves_the_others(tiny_base: Path, tiny_adapters: Mapping[str, Path]) -> None:
    names = ("lora-r4", "lora-r8", "prefix-5")
    bench = Bench(tiny_base, {n: tiny_adapters[n] for n in names})
    rows = [bench.row(name, 12, i) for i, name in enumerate(names)]
    bench.step(rows, [4, 4, 4])
    before = bench.runner.adapter_bytes
    bench.runner.remove(bench.keys["lora-r4"])
    assert bench.runner.adapter_bytes < before
    bench.step(rows[1:], [1, 1])


def test_bytes_are_what_the_tensors_weigh(bench: Bench) -> None:
    prepared = bench.runner.prepare(bench.adapters["lora-r4"])
    weights = sum(4 * (out + in_) for name, (out, in_) in bench.runner.spec.linears.items() if name != "lm_head")
    assert prepared.adapter.nbytes == 4 * weights
    assert prepared.warnings == []
    assert set(prepared.seconds) == {"read", "validate", "copy"}


def test_prepare_refuses_another_bases_adapter(bench: Bench, tmp_path: Path) -> None:
    other = make_base(tmp_path / "other", hidden_size=32, intermediate_size=48)
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    package = make_adapter(other, tmp_path / "lora", config)
    with pytest.raises(AdapterError):
        bench.runner.prepare(package)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"max_model_len": 4096}, "exceeds the base's 512 positions"),
        ({"kv_cache_gb": 1e-6}, "raise it"),
    ],
)
def test_bad_settings_are_refused_in_words(tiny_base: Path, config: dict[str, float], message: str) -> None:
    with pytest.raises(EngineStartError, match=message):
        load_runner(EngineConfig(model=str(tiny_base), quantize="none", **config))  # type: ignore[arg-type]


def test_an_architecture_without_the_seam_is_refused(tmp_path: Path) -> None:
    base = make_base(tmp_path / "mamba", model_type="mamba")
    with pytest.raises(EngineStartError, match="mamba"):
        load_runner(EngineConfig(model=str(base), quantize="none", dtype="float32"))


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineStartError, match="cannot load"):
        load_runner(EngineConfig(model=str(tmp_path)))
