"""Kinds that compute with the base's weights, over quantized bases: they read what the base computes with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from server.adapter_key import AdapterKey
from server.config import EngineConfig
from server.model.inputs import ModelInput, SequenceInput
from server.model.model_runner import load_runner
from tests import oracle
from tests.bounds import packed_logits

pytestmark = pytest.mark.numeric

# What bitsandbytes rounds to INT8 the oracle keeps in plain fp32, where peft serves every kind; over 4-bit weights peft
# itself serves HiRA alone of these. ("osf" parts singular values so close that the weights' last bit shows: 3e-5.)
KINDS = {
    "int8": ["hira", "glora", "glora-vector", "osf-patterns", "deft", "deft-qr", "para", "peanut-deep"],
    "nf4": ["hira"],
    "fp4-dq": ["hira"],
}


@pytest.mark.parametrize("quantize", KINDS)
def test_mixed_batch_equals_peft(tiny_base: Path, tiny_adapters: Mapping[str, Path], quantize: str) -> None:
    config = EngineConfig(
        model=str(tiny_base), quantize=quantize, dtype="float32", kv_dtype="float32", kv_cache_gb=0.02, block_size=4,
        threads=1,
    )  # fmt: skip
    runner = load_runner(config)
    prompts = torch.randint(0, 250, (len(KINDS[quantize]), 9), generator=torch.Generator().manual_seed(1)).tolist()
    sequences = []
    for i, (name, prompt) in enumerate(zip(KINDS[quantize], prompts, strict=True)):
        key = AdapterKey(name, 1, name)
        runner.install(key, runner.prepare(tiny_adapters[name]).adapter)
        sequences.append(SequenceInput(key, prompt, 0, [3 * i, 3 * i + 1, 3 * i + 2], [8]))
    mixed = runner.execute(ModelInput(sequences))
    for name, prompt, logits in zip(KINDS[quantize], prompts, mixed, strict=True):
        want = oracle.logits(tiny_base, tiny_adapters[name], prompt, quantize)[-1]
        assert (logits - want).abs().max() < 2 * packed_logits(quantize), name  # GLoRA's scales make activations larger
