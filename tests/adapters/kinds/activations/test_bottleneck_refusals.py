"""Bottleneck packages that must be refused, in words."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from tests.adapters.kinds.changes import Change, drop, put, refusal_of, say

DOWN = "base_model.model.model.layers.0.mlp.down_proj.bottleneck_down.weight"


REFUSED: dict[str, tuple[str, Change, str]] = {
    "missing factor": ("bottleneck-pfeiffer", drop(DOWN), "bottleneck_down.weight' is missing"),
    "shape": ("bottleneck-pfeiffer", put(DOWN, torch.zeros(6, 63)), "has shape [6, 63], expected [6, 64]"),
    "size": ("bottleneck-pfeiffer", say(bottleneck_size=5), "expected [5, 64]"),
    "size of zero": ("bottleneck-pfeiffer", say(bottleneck_size=0), "bottleneck_size is 0"),
    "activation": ("bottleneck-pfeiffer", say(activation="exp"), "Invalid enum value"),
    "infinite scale": ("bottleneck-pfeiffer", say(scale=1e39), "not finite"),
    "unknown tensor": ("bottleneck-pfeiffer", put("base_model.model.x", torch.zeros(1)), "is unknown"),
    "module without": (
        "bottleneck-pfeiffer",
        say(target_modules=["down_proj", "o_proj"]),
        "target_modules names this module",
    ),
    "another base's module": (
        "bottleneck-pfeiffer",
        put("base_model.model.h.0.c_proj.bottleneck_down.weight", torch.zeros(6, 64)),
        "matches no linear map",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str, tiny_base: Path, tiny_adapters: Mapping[str, Path], tmp_path: Path) -> None:
    name, how, words = REFUSED[case]
    assert words in refusal_of(tiny_base, tiny_adapters[name], how, tmp_path)
