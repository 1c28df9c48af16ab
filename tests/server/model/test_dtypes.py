"""bf16 everywhere, and a CUDA device: the same batch as in fp32 on the CPU, within the type's rounding."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from server.config import EngineConfig
from server.model.inputs import VIRTUAL, ModelInput, SequenceInput
from server.model.runner import load_runner
from server.registry import AdapterKey

NAMES = ["lora-r4", "lora-r8", "rslora-r16", "lora-bias", "prompt-7", "prefix-5"]


def mixed_logits(base: Path, adapters: Mapping[str, Path], **settings: str) -> Tensor:
    """Logits of one prefill and one decode of the same mixed batch."""
    common = {"quantize": "none", "kv_cache_gb": 0.02, "block_size": 4, "threads": 1}
    runner = load_runner(EngineConfig(model=str(base), **{**common, **settings}))  # type: ignore[arg-type]
    prefill, decode = [SequenceInput(None, [7, 8, 9], 0, [0], [2])], [SequenceInput(None, [5], 3, [0], [0])]
    for i, name in enumerate(NAMES):
        key, blocks = AdapterKey(name, 1, name), list(range(4 * i + 1, 4 * i + 5))
        adapter = runner.prepare(adapters[name]).adapter
        runner.install(key, adapter)
        ids, start = [10 + i, 20, 30, 40, 50 + i], 0
        if adapter.prefix is not None:
            runner.write_prefix(key, blocks)
            start = adapter.num_virtual_tokens
        else:
            ids = [VIRTUAL] * adapter.num_virtual_tokens + ids
        prefill.append(SequenceInput(key, ids, start, blocks, [len(ids) - 1]))
        decode.append(SequenceInput(key, [60 + i], start + len(ids), blocks, [0]))
    return torch.cat([runner.execute(ModelInput(part)).cpu() for part in (prefill, decode)])


def test_bfloat16(tiny_base: Path, tiny_adapters: Mapping[str, Path]) -> None:
    want = mixed_logits(tiny_base, tiny_adapters, dtype="float32", device="cpu")
    got = mixed_logits(tiny_base, tiny_adapters, dtype="bfloat16", device="cpu")
    # 8 bits of mantissa through two layers, logits of magnitude 3
    torch.testing.assert_close(got, want, rtol=0, atol=0.15)
    assert float((got - want).abs().mean()) < 0.02


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda(tiny_base: Path, tiny_adapters: Mapping[str, Path]) -> None:
    want = mixed_logits(tiny_base, tiny_adapters, dtype="float32", device="cpu")
    got = mixed_logits(tiny_base, tiny_adapters, dtype="float32", device="cuda")
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4)
