"""hotswap's own formats, which peft does not know: packages written by hand."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.kinds.case import Case

SIZE = 6


@dataclass(frozen=True)
class OwnCase(Case):
    def save(self, base: Path, path: Path, seed: int = 1) -> Path:
        torch.manual_seed(seed)
        config: dict[str, Any] = {"task_type": "CAUSAL_LM", **self.config()}
        weights = load_file(base / "model.safetensors")
        make = _bottleneck if config["peft_type"] == "BOTTLENECK" else _freeze
        path.mkdir(parents=True, exist_ok=True)
        (path / "adapter_config.json").write_text(json.dumps(config))
        tensors = {f"base_model.model.{name}": t.contiguous() for name, t in make(config, weights).items()}
        save_file(tensors, path / "adapter_model.safetensors")
        return path


def _bottleneck(config: dict[str, Any], weights: dict[str, Tensor]) -> dict[str, Tensor]:
    made: dict[str, Tensor] = {}
    for name, weight in weights.items():
        module = name.removesuffix(".weight")
        if module.endswith(tuple(config["target_modules"])) and name.endswith(".weight"):
            made[f"{module}.bottleneck_down.weight"] = torch.randn(SIZE, weight.shape[0]) * 0.2
            made[f"{module}.bottleneck_down.bias"] = torch.randn(SIZE) * 0.2
            made[f"{module}.bottleneck_up.weight"] = torch.randn(weight.shape[0], SIZE) * 0.2
            made[f"{module}.bottleneck_up.bias"] = torch.randn(weight.shape[0]) * 0.2
    return made


def _freeze(config: dict[str, Any], weights: dict[str, Tensor]) -> dict[str, Tensor]:
    starts = [f"model.layers.{i}." for i in config.get("layers", [])]
    starts += [f"{module}." for module in config.get("modules", [])]
    return {n: t + torch.randn_like(t) * 0.05 for n, t in weights.items() if n.startswith(tuple(starts))}


def _bottleneck_config(layout: str, activation: str, modules: list[str], scale: float = 1.0) -> OwnCase:
    config = {"peft_type": "BOTTLENECK", "layout": layout, "bottleneck_size": SIZE, "activation": activation}
    return OwnCase(lambda: {**config, "target_modules": modules, "scale": scale})


CASES: dict[str, Case] = {
    "bottleneck-houlsby": _bottleneck_config("houlsby", "gelu", ["o_proj", "down_proj"]),
    "bottleneck-pfeiffer": _bottleneck_config("pfeiffer", "relu", ["down_proj"], scale=0.5),
    "freeze-last-layer": OwnCase(lambda: {"peft_type": "FREEZE", "layers": [1]}),
    "freeze-norm": OwnCase(lambda: {"peft_type": "FREEZE", "modules": ["model.norm", "model.layers.0.mlp.up_proj"]}),
    "freeze-embedding": OwnCase(lambda: {"peft_type": "FREEZE", "layers": [0], "modules": ["model.embed_tokens"]}),
}
