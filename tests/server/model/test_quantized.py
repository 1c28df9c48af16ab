"""Quantized bases against peft over the same quantized weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from server.config import EngineConfig
from server.model.inputs import VIRTUAL, ModelInput, SequenceInput
from server.model.runner import ModelRunner, load_runner
from server.registry import AdapterKey
from tests import oracle

NAMES = ["lora-r8", "lora-r4", "lora-bias", "prompt-7", "prefix-5"]
TOLERANCE = 1e-5  # both sides multiply by the same dequantized fp32 weights
QUANTIZATIONS = ["nf4", "int8"]


def make_runner(base: Path, quantize: str) -> ModelRunner:
    settings = {"dtype": "float32", "kv_cache_gb": 0.02, "block_size": 4, "threads": 1}
    return load_runner(EngineConfig(model=str(base), quantize=quantize, **settings))  # type: ignore[arg-type]


@pytest.mark.parametrize("quantize", QUANTIZATIONS)
def test_mixed_batch_equals_peft_over_the_same_weights(
    tiny_base: Path, tiny_adapters: Mapping[str, Path], quantize: str
) -> None:
    runner = make_runner(tiny_base, quantize)
    prompts = {name: torch.randint(0, 250, (9,), generator=torch.Generator().manual_seed(i)).tolist()
               for i, name in enumerate(["base", *NAMES])}  # fmt: skip
    sequences, block = [SequenceInput(None, prompts["base"], 0, [0, 1, 2], [8])], 3
    for name in NAMES:
        adapter = runner.prepare(tiny_adapters[name]).adapter
        key = AdapterKey(name, 1, name)
        runner.install(key, adapter)
        blocks, virtual = list(range(block, block + 5)), adapter.num_virtual_tokens
        block += 5
        if adapter.prefix is not None:
            runner.write_prefix(key, blocks)
            sequences.append(SequenceInput(key, prompts[name], virtual, blocks, [8]))
        else:
            ids = [VIRTUAL] * virtual + prompts[name]
            sequences.append(SequenceInput(key, ids, 0, blocks, [len(ids) - 1]))
    mixed = runner.execute(ModelInput(sequences))
    for name, logits in zip(["base", *NAMES], mixed, strict=True):
        path = None if name == "base" else tiny_adapters[name]
        want = oracle.logits(tiny_base, path, prompts[name], quantize)[-1]
        torch.testing.assert_close(logits, want, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("quantize", QUANTIZATIONS)
def test_quantized_weights_are_smaller_and_reported(tiny_base: Path, quantize: str) -> None:
    plain, packed = make_runner(tiny_base, "none"), make_runner(tiny_base, quantize)
    linears = sum(out * in_ for name, (out, in_) in plain.spec.linears.items() if name != "lm_head")
    saved = plain.base_bytes - packed.base_bytes
    assert saved >= linears * {"nf4": 3.2, "int8": 2.8}[quantize]  # of 4 bytes a weight
