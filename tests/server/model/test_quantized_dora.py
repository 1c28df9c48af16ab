"""Kinds that read the base's weights, over quantized bases: peft over the same dequantized weights in plain fp32.

peft itself fails for DoRA over INT8.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import nn

from server.adapter_key import AdapterKey
from server.model.inputs import ModelInput, SequenceInput
from server.model.model_runner import ModelRunner
from tests import oracle
from tests.adapters.support import load_model
from tests.bounds import packed_logits
from tests.server.model.support import make_runner

pytestmark = pytest.mark.numeric

NAMES = ["dora-r4", "dora-rslora-patterns", "dora-bias", "dora-embedding-and-head", "lora-tied"]


@torch.no_grad()
def stock_over(runner: ModelRunner, base: Path) -> Any:
    """The stock model, in fp32, with the weights that the runner computes with."""
    model = load_model(base)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            module.weight.data = runner.spec.weight(name).clone()
    model.tie_weights()
    return model


@pytest.mark.parametrize("quantize", ["nf4", "nf4-dq", "int8"])
def test_dora_over_a_quantized_base(tiny_base: Path, tiny_adapters: Mapping[str, Path], quantize: str) -> None:
    runner = make_runner(tiny_base, quantize)
    prompt = torch.randint(0, 250, (9,), generator=torch.Generator().manual_seed(3)).tolist()
    sequences = [SequenceInput(None, prompt, 0, [0, 1, 2], [8])]
    for i, name in enumerate(NAMES, start=1):
        key = AdapterKey(name, 1, name)
        runner.install(key, runner.prepare(tiny_adapters[name]).adapter)
        sequences.append(SequenceInput(key, prompt, 0, [3 * i, 3 * i + 1, 3 * i + 2], [8]))
    got = runner.execute(ModelInput(sequences))
    rounded = stock_over(runner, tiny_base).model.layers[0].self_attn.q_proj.weight
    assert not torch.equal(rounded, load_model(tiny_base).model.layers[0].self_attn.q_proj.weight)
    for name, logits in zip(NAMES, got[1:], strict=True):
        model = PeftModel.from_pretrained(stock_over(runner, tiny_base), tiny_adapters[name]).eval()
        with torch.no_grad():
            want = model(input_ids=torch.tensor([prompt])).logits[0, -1]
        torch.testing.assert_close(logits, want, rtol=0, atol=packed_logits(quantize))
        if quantize != "int8":
            want = oracle.logits(tiny_base, tiny_adapters[name], prompt, quantize)[-1]
            torch.testing.assert_close(logits, want, rtol=0, atol=packed_logits(quantize))
