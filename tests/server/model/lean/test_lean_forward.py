"""The lean forward beside the model's own, and which of them runs."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from server.config import EngineConfig
from server.model import forward
from server.model.forward import DecoderForward
from server.model.inputs import ModelInput, SequenceInput
from server.model.lean.plan import Plan
from server.model.lean.reading import read_plan
from server.model.model_runner import ModelRunner, load_runner
from tests.factory import make_adapter, make_base
from tests.server.model.bench import Bench
from tests.server.model.lean.shapes import SHAPES, make_shape

pytestmark = pytest.mark.numeric


def runner_of(base: Path, choice: str = "auto") -> ModelRunner:
    return load_runner(
        EngineConfig(
            model=str(base), quantize="none", dtype="float32", kv_cache_gb=0.01, block_size=4, threads=1, forward=choice
        )
    )


def is_lean(runner: ModelRunner) -> bool:
    assert isinstance(runner._forward, DecoderForward)
    return runner._forward.is_lean


def logits_of(runner: ModelRunner) -> Tensor:
    """Of three prompts, longer than every window, in a step each and in pieces, and of what is decoded then."""
    counts = ((19, 1, 5), (1, 7, 7), (1, 1, 1))
    done, found = [0, 0, 0], []
    for step in counts:
        sequences = []
        for i, count in enumerate(step):
            tokens = [(17 * i + 5 * (done[i] + j)) % 300 for j in range(count)]
            blocks = list(range(8 * i, 8 * i + 8))
            sequences.append(SequenceInput(None, tokens, done[i], blocks, list(range(count))))
            done[i] += count
        found.append(runner.execute(ModelInput(sequences)))
    return torch.cat(found)


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_gives_the_models_own_logits(name: str, tmp_path: Path) -> None:
    base = make_shape(name, tmp_path)
    lean, generic = runner_of(base), runner_of(base, "generic")
    assert is_lean(lean)
    assert not is_lean(generic)
    want = logits_of(generic)
    # two layers of some ten sums over 128 products, of numbers that norms keep near one
    torch.testing.assert_close(logits_of(lean), want, rtol=0, atol=2e-5 * float(want.abs().max()))


@pytest.mark.parametrize("name", ["qwen3", "gemma3", "olmo2", "hunyuan"])
def test_adapters_at_the_norms_of_heads(name: str, tmp_path: Path) -> None:
    from peft import LNTuningConfig

    base = make_shape(name, tmp_path / "base")
    last = {"hunyuan": ["query_layernorm", "key_layernorm"]}.get(name, ["q_norm", "k_norm"])
    config = LNTuningConfig(target_modules=[*last, "post_attention_layernorm"], task_type="CAUSAL_LM")
    bench = Bench(base, {"norms": make_adapter(base, tmp_path / "norms", config, std=0.5)})
    assert is_lean(bench.runner)
    rows = [bench.row(adapter, 14, seed) for seed, adapter in enumerate([None, "norms", "norms", None])]
    bench.step(rows, [9, 4, 11, 1])
    bench.step(rows, [1, 1, 1, 6])


def test_one_line_says_what_runs(tiny_base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger=forward.logger.name)
    assert is_lean(runner_of(tiny_base))
    assert not is_lean(runner_of(tiny_base, "generic"))
    assert not is_lean(runner_of(make_base(tmp_path / "gpt2", model_type="gpt2", num_key_value_heads=None)))
    first, second, third = (record.message for record in caplog.records)
    assert first.startswith("lean forward, by the plan of the model; off by ")
    assert second == "generic forward, by transformers: as --forward says"
    assert third == "generic forward, by transformers: the embedding is followed by more than a factor"


def test_a_plan_that_disagrees_is_not_used(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def wrong(model: object) -> Plan:
        plan = read_plan(model)
        last = plan.layers[-1]
        attention = replace(last.attention, rule=replace(last.attention.rule, scaling=0.2))
        return replace(plan, layers=(*plan.layers[:-1], replace(last, attention=attention)))

    caplog.set_level(logging.INFO, logger=forward.logger.name)
    monkeypatch.setattr(forward, "read_plan", wrong)
    assert not is_lean(runner_of(tiny_base))
    assert "its plan gives other logits" in caplog.records[-1].message


def test_weights_that_are_joined_take_no_more_memory(tiny_base: Path) -> None:
    assert runner_of(tiny_base).base_bytes == runner_of(tiny_base, "generic").base_bytes


def test_a_bad_choice_is_refused() -> None:
    with pytest.raises(ValueError, match="--forward must be one of auto, generic, not 'fast'"):
        EngineConfig(forward="fast")
