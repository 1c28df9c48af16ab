"""Runners of tiny bases, and what a mixed batch on them is held against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from server.adapter_key import AdapterKey
from server.config import EngineConfig
from server.model.inputs import VIRTUAL, ModelInput, SequenceInput
from server.model.model_runner import ModelRunner, load_runner
from tests import oracle
from tests.bounds import packed_logits

NAMES = ["lora-r8", "lora-r4", "lora-bias", "prompt-7", "prefix-5"]


def make_runner(base: Path, quantize: str, dtype: str = "float32") -> ModelRunner:
    """Its cache rounds nothing: what is held against peft is exact."""
    settings = {"dtype": dtype, "kv_dtype": dtype, "kv_cache_gb": 0.02, "block_size": 4, "threads": 1}
    return load_runner(EngineConfig(model=str(base), quantize=quantize, **settings))  # type: ignore[arg-type]


def assert_mixed_batch_equals_peft(
    runner: ModelRunner, base: Path, adapters: Mapping[str, Path], quantize: str, names: Sequence[str] = NAMES
) -> None:
    """One batch of the base and several kinds; ``quantize`` is what the oracle makes of ``base``."""
    prompts = {name: torch.randint(0, 250, (9,), generator=torch.Generator().manual_seed(i)).tolist()
               for i, name in enumerate(["base", *names])}  # fmt: skip
    sequences, block = [SequenceInput(None, prompts["base"], 0, [0, 1, 2], [8])], 3
    for name in names:
        adapter = runner.prepare(adapters[name]).adapter
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
    for name, logits in zip(["base", *names], mixed, strict=True):
        path = None if name == "base" else adapters[name]
        want = oracle.logits(base, path, prompts[name], quantize)[-1]
        torch.testing.assert_close(logits, want, rtol=0, atol=packed_logits(quantize))
