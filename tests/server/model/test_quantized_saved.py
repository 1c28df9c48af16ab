"""Trained tokens, modules saved whole and all that stands before the prompt, over quantized bases, against peft."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.server.model.support import assert_mixed_batch_equals_peft, make_runner

NAMES = [
    "cartridge",
    "cpt",
    "multitask-prompt",
    "trainable-tokens",
    "lora-tokens-apart",
    "lora-head-saved",
    "lora-embedding-and-norms-saved",
    "lora-embedding-and-head-saved",
]


@pytest.mark.parametrize("quantize", ["nf4", "int8"])
def test_mixed_batch_equals_peft(tiny_base: Path, tiny_adapters: Mapping[str, Path], quantize: str) -> None:
    runner = make_runner(tiny_base, quantize)
    assert_mixed_batch_equals_peft(runner, tiny_base, tiny_adapters, quantize, NAMES)
