"""LoRA packages whose tensors or targets do not fit the base: each says why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from adapters.compiling import compile_package
from adapters.errors import AdapterError, PackageError, UnsupportedKindError
from adapters.ops import Adapter
from adapters.package.reading import read_package
from tests.adapters.support import LORA_CONFIG, SMALL_SPEC, lora_tensors, write_raw

A0 = "base_model.model.model.layers.0.attn.q_proj.lora_A.weight"
B0 = "base_model.model.model.layers.0.attn.q_proj.lora_B.weight"


def compile_raw(path: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> Adapter:
    return compile_package(read_package(write_raw(path, config, tensors)), SMALL_SPEC)


def without(name: str) -> dict[str, Tensor]:
    return {key: value for key, value in lora_tensors().items() if key != name}


BIAS = {**LORA_CONFIG, "bias": "all"}
NORM_BIAS = "base_model.model.model.norm.bias"
REFUSED: dict[str, tuple[dict[str, Any], dict[str, Tensor], type[AdapterError], str]] = {
    "missing partner": (LORA_CONFIG, without(B0), PackageError, f"{B0}' is missing; its partner"),
    "wrong input size": (
        LORA_CONFIG,
        {**lora_tensors(), A0: torch.ones(4, 12)},
        PackageError,
        r"has shape \[4, 12\], expected \[4, 16\].*made for another base",
    ),
    "wrong output size": (
        LORA_CONFIG,
        {**lora_tensors(), B0: torch.ones(9, 4)},
        PackageError,
        r"has shape \[9, 4\], expected \[8, 4\].*made for another base",
    ),
    "rank not as configured": (
        {**LORA_CONFIG, "r": 2},
        lora_tensors(),
        PackageError,
        r"has shape \[4, 16\], expected \[2, 16\].*rank_pattern",
    ),
    "factor with three dimensions": (
        LORA_CONFIG,
        {**lora_tensors(), A0: torch.ones(4, 1, 16)},
        PackageError,
        r"has shape \[4, 1, 16\]",
    ),
    "unknown tensor": (LORA_CONFIG, {**lora_tensors(), "surprise": torch.ones(2)}, PackageError, "'surprise' is unkn"),
    "adapter name not removed": (
        LORA_CONFIG,
        {**lora_tensors(), A0.replace("weight", "default.weight"): torch.ones(4, 16)},
        PackageError,
        "is unknown",
    ),
    "unknown module": (
        {**LORA_CONFIG, "target_modules": ["c_attn"]},
        lora_tensors(name="attn.c_attn"),
        PackageError,
        "matches no linear map of the base 'small': its names suggest .* another architecture",
    ),
    "deeper base": (LORA_CONFIG, lora_tensors(layers=3), PackageError, "the base has 2 layers; .* deeper one"),
    "no tensors of LoRA": (BIAS, {NORM_BIAS: torch.ones(16)}, PackageError, "holds no LoRA tensors"),
    "incomplete": (LORA_CONFIG, lora_tensors(layers=1), PackageError, r"layers.1.* is missing.*\(1 of 2 targeted"),
    "more than targeted": (
        {**LORA_CONFIG, "layers_to_transform": [0]},
        lora_tensors(),
        PackageError,
        "layers.1.*belongs to a module that target_modules does not name",
    ),
    "target without match": (
        {**LORA_CONFIG, "target_modules": ["q_proj", "query_key_value"]},
        lora_tensors(),
        PackageError,
        "target_modules names 'query_key_value', which matches no linear map",
    ),
    "bias not configured": (LORA_CONFIG, {**lora_tensors(), NORM_BIAS: torch.ones(16)}, PackageError, "is unknown"),
    "bias of a module without one": (
        BIAS,
        {**lora_tensors(), "base_model.model.model.layers.1.attn.q_proj.base_layer.bias": torch.ones(8)},
        PackageError,
        "has no bias",
    ),
    "bias of another size": (BIAS, {**lora_tensors(), NORM_BIAS: torch.ones(8)}, PackageError, r"expected \[16\]"),
    "bias twice": (
        BIAS,
        {
            **lora_tensors(),
            "base_model.model.model.layers.0.attn.q_proj.base_layer.bias": torch.ones(8),
            "base_model.model.model.layers.0.attn.q_proj.bias": torch.ones(8),
        },
        PackageError,
        "two biases",
    ),
    "head": (
        {**LORA_CONFIG, "target_modules": ["lm_head"]},
        {
            "base_model.model.lm_head.lora_A.weight": torch.ones(4, 16),
            "base_model.model.lm_head.lora_B.weight": torch.ones(32, 4),
        },
        PackageError,
        "matches no linear map of the base",
    ),
    "resized vocabulary": (
        LORA_CONFIG,
        {**lora_tensors(), "base_model.model.model.embed_tokens.weight": torch.ones(33, 16)},
        UnsupportedKindError,
        "vocabulary resized",
    ),
    "overflowing scale": (
        {**LORA_CONFIG, "lora_alpha": 1e38},
        {**lora_tensors(), B0: torch.full((8, 4), 1e3)},
        PackageError,
        "lora_alpha is too large",
    ),
    "bad pattern": (
        {**LORA_CONFIG, "rank_pattern": {"(": 4}},
        lora_tensors(),
        PackageError,
        "not a regular expression",
    ),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_refused(name: str, tmp_path: Path) -> None:
    config, tensors, error, words = REFUSED[name]
    with pytest.raises(error, match=words):
        compile_raw(tmp_path / "p", config, tensors)


def test_the_sound_package_that_the_others_vary_is_accepted(tmp_path: Path) -> None:
    adapter = compile_raw(tmp_path / "p", BIAS, {**lora_tensors(), NORM_BIAS: torch.full((16,), 2.0)})
    assert sorted(adapter.ops) == ["model.layers.0.attn.q_proj", "model.layers.1.attn.q_proj", "model.norm"]
