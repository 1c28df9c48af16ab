"""Freeze packages that must be refused, in words."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from tests.adapters.kinds.changes import Change, drop, put, refusal_of, say

NORM = "base_model.model.model.layers.1.input_layernorm.weight"


REFUSED: dict[str, tuple[str, Change, str]] = {
    "a parameter of the layer is missing": ("freeze-last-layer", drop(NORM), "is missing (1 of"),
    "a layer that was not trained": ("freeze-last-layer", say(layers=[0]), "is no parameter of the layers"),
    "a layer beyond the base": ("freeze-last-layer", say(layers=[1, 7]), "has layers 0 to 1"),
    "a module beyond the base": ("freeze-norm", say(modules=["model.nothing"]), "does not have"),
    "no layers": ("freeze-last-layer", say(layers=[]), "names neither layers nor modules"),
    "freeze shape": ("freeze-last-layer", put(NORM, torch.zeros(63)), "has shape [63], expected [64]"),
    "two weights of one": (
        "freeze-embedding",
        lambda config, tensors: (
            config.update(modules=["model.embed_tokens", "lm_head"]),
            tensors.update({"base_model.model.lm_head.weight": torch.zeros(320, 64)}),
        ),
        "ties its output head",
    ),
    "unknown key": ("freeze-last-layer", say(depth=3), "unknown key"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str, tiny_base: Path, tiny_adapters: Mapping[str, Path], tmp_path: Path) -> None:
    name, how, words = REFUSED[case]
    assert words in refusal_of(tiny_base, tiny_adapters[name], how, tmp_path)
