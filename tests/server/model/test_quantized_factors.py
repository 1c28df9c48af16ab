"""Kinds made of factors over quantized bases."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from adapters.ops.replace import ReplaceLinear
from server.model.model_runner import ModelRunner
from tests.server.model.support import assert_mixed_batch_equals_peft, make_runner

# Over 4-bit weights peft itself serves these kinds alone. Over rounded ones it serves all but FRoD: it finds the left
# factor from a basis of the weights that it loads, and then puts the saved basis, of other weights, beside it.
PACKED = ["adalora-kept", "vera", "pvera-drawn", "randlora-drawn", "vblora-topk", "gralora-hybrid"]
KINDS = {
    "int8": [*PACKED, "loha-of-higher-rank", "lokr-both", "tinylora-drawn", "unilora", "delora"],
    "nf4": PACKED,
    "fp4-dq": PACKED,
}


@pytest.mark.parametrize("quantize", KINDS)
def test_mixed_batch_equals_peft(tiny_base: Path, tiny_adapters: Mapping[str, Path], quantize: str) -> None:
    runner = make_runner(tiny_base, quantize)
    assert_mixed_batch_equals_peft(runner, tiny_base, tiny_adapters, quantize, KINDS[quantize])


def test_frod_finds_its_left_factor_in_the_weights_served(tiny_base: Path, tiny_adapters: Mapping[str, Path]) -> None:
    """Its weights follow those of the base, though the basis, that of the plain one, makes more of each rounding."""

    def weight(runner: ModelRunner) -> torch.Tensor:
        op = runner.prepare(tiny_adapters["frod"]).adapter.ops[module][0]
        assert isinstance(op, ReplaceLinear)
        return op.weight

    module = "model.layers.1.self_attn.q_proj"
    plain, rounded = make_runner(tiny_base, "none"), make_runner(tiny_base, "int8")
    own = rounded.spec.weight(module) - plain.spec.weight(module)
    found = weight(rounded) - weight(plain)
    assert 0 < own.norm() < 0.02 * plain.spec.weight(module).norm()
    assert 0 < found.norm() < 10 * own.norm()
