"""Hidden states of a mixed batch, by the plan and by the model itself, against transformers and peft alone."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LNTuningConfig, LoraConfig, PrefixTuningConfig, PromptTuningConfig

from server.adapter_key import AdapterKey
from server.config import EngineConfig
from server.model.inputs import VIRTUAL, ModelInput, SequenceInput
from server.model.model_runner import load_runner
from tests import oracle
from tests.bounds import HIDDEN
from tests.factory import make_adapter, make_base

PROMPTS = [[7, 40, 200, 3, 11], [90, 2], [33, 250, 8, 8, 1, 77, 64, 5, 19]]
CONFIGS = {
    "lora": LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"),
    "norms": LNTuningConfig(target_modules=["norm", "input_layernorm"], task_type="CAUSAL_LM"),
    "whole": LoraConfig(r=2, target_modules=["v_proj"], modules_to_save=["norm"], task_type="CAUSAL_LM"),
    "prefix": PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
    "prompt": PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
}


@pytest.mark.parametrize(
    ("forward", "model_type", "settings"),
    [
        ("auto", "llama", {}),
        ("generic", "llama", {}),
        ("auto", "gpt2", {"n_inner": 128, "num_key_value_heads": None, "head_dim": None}),
        ("auto", "gemma2", {"query_pre_attn_scalar": 16}),
    ],
)
def test_rows_of_all_kinds(tmp_path: Path, forward: str, model_type: str, settings: dict[str, Any]) -> None:
    base = make_base(tmp_path / "base", model_type=model_type, **settings)
    config = EngineConfig(
        model=str(base), quantize="none", dtype="float32", kv_cache_gb=0.02, block_size=16, threads=1, forward=forward
    )
    runner = load_runner(config)
    configs = CONFIGS if model_type == "llama" else {}
    packages: dict[str, Path | None] = {"": None}
    sequences, keys = [], {}
    for i, (name, one) in enumerate(configs.items()):
        packages[name] = make_adapter(base, tmp_path / name, copy.deepcopy(one), seed=i, std=0.3)
        keys[name] = AdapterKey(name, 1, name)
        runner.install(keys[name], runner.prepare(tmp_path / name).adapter)
    asked = [(name, ids) for name in packages for ids in PROMPTS]
    for number, (name, ids) in enumerate(asked):
        start, virtual = 0, 3 if name in ("prefix", "prompt") else 0
        if name == "prefix":
            runner.write_prefix(keys[name], [number])
            start, virtual = 3, 0
        tokens = [VIRTUAL] * virtual + ids
        wanted = range(virtual, len(tokens))
        logits_at = [len(tokens) - 1] if number % 2 else []
        sequences.append(SequenceInput(keys.get(name), tokens, start, [number], logits_at, hidden_at=wanted))
    sequences.insert(1, SequenceInput(None, [5, 6], 0, [len(asked)], [1]))  # one that generates
    output = runner.compute(ModelInput(sequences))
    assert len(output.logits) == len(asked) // 2 + 1
    for (name, ids), found in zip(asked, output.hidden, strict=True):
        torch.testing.assert_close(found, oracle.hidden(base, packages[name], ids), rtol=0, atol=HIDDEN)
