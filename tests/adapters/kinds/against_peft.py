"""Ops in a stock model against PEFT running the same saved adapter, on bases of several architectures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from adapters.compiling import compile_package
from adapters.package.reading import read_package
from tests.adapters.support import op_logits, peft_logits, spec_of
from tests.bounds import LOGITS

INPUT_IDS = torch.tensor([5, 9, 250, 17, 33, 64, 64])
TOLERANCE = LOGITS
GPT2 = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128, "num_key_value_heads": 4}
BASES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "qwen2": {"model_type": "qwen2"},
    "opt": {"model_type": "opt", "ffn_dim": 128, "word_embed_proj_dim": 64, "num_key_value_heads": 4},
    "gpt2": {"model_type": "gpt2", **GPT2},
}


def error(base: Path, path: Path) -> float:
    """The largest difference of a logit; the adapter must not be one that changes nothing."""
    adapter = compile_package(read_package(path), spec_of(base))
    expected = peft_logits(base, path, INPUT_IDS)
    assert (expected - op_logits(base, type(adapter)("none"), INPUT_IDS)).abs().max() > 1e-2  # no no-op
    return float((expected - op_logits(base, adapter, INPUT_IDS)).abs().max())
