"""Where gate's and up's updates land in the one parameter of both. Parity with peft is in the tests of families."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from adapters.compiling import compile_package
from adapters.ops.routed_experts import ExpertLowRank
from adapters.package.reading import read_package
from tests.adapters.support import LORA_CONFIG, SMALL_SPEC, write_raw

FUSED = "model.layers.0.mlp.experts.gate_up_proj"
SPEC = replace(SMALL_SPEC, experts={FUSED: (3, 16, 8), "model.layers.0.mlp.experts.down_proj": (3, 4, 16)})
NAME = "base_model.model.model.layers.0.mlp.experts.1.{}.lora_{}.weight"


@pytest.mark.parametrize("is_interleaved", [False, True])
def test_the_features_of_gate_and_up(tmp_path: Path, is_interleaved: bool) -> None:
    torch.manual_seed(0)
    shapes = {"A": (4, 16), "B": (4, 4)}
    tensors = {NAME.format(leaf, f): torch.randn(shapes[f]) for leaf in ("gate_proj", "up_proj") for f in "AB"}
    targets = ["experts.1.gate_proj", "experts.1.up_proj"]
    path = write_raw(tmp_path / "package", {**LORA_CONFIG, "target_modules": targets}, tensors)
    spec = replace(SPEC, interleaved=frozenset([FUSED]) if is_interleaved else frozenset())
    (op,) = compile_package(read_package(path), spec).ops[FUSED]
    assert isinstance(op, ExpertLowRank)
    gate, up = (
        2 * tensors[NAME.format(leaf, "B")] @ tensors[NAME.format(leaf, "A")] for leaf in ("gate_proj", "up_proj")
    )
    both = torch.stack([gate, up], 1).flatten(0, 1) if is_interleaved else torch.cat([gate, up])
    torch.testing.assert_close((op.a[1] @ op.b[1]).T, both)
    assert not op.b[[0, 2]].any()
