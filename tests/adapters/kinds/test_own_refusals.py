"""Bottleneck and Freeze packages that must be refused, in words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapters.compiling import compile_package
from adapters.package.reading import read_package
from tests.adapters.kinds.changes import Change, drop, put, say
from tests.adapters.support import refusal, spec_of

DOWN = "base_model.model.model.layers.0.mlp.down_proj.bottleneck_down.weight"
NORM = "base_model.model.model.layers.1.input_layernorm.weight"


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
    name, change, words = REFUSED[case]
    config = json.loads((tiny_adapters[name] / "adapter_config.json").read_text())
    tensors = load_file(tiny_adapters[name] / "adapter_model.safetensors")
    change(config, tensors)
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    assert words in refusal(lambda: compile_package(read_package(tmp_path), spec_of(tiny_base)))
