"""Kinds that change a module's activations: gains, biases, and small networks on its output."""

from __future__ import annotations

from typing import Any

import torch
from peft import IA3Config
from peft.tuners.beft import BeftConfig
from torch import Tensor

from tests.kinds.case import CLM, Case, OwnCase, around_one

SIZE = 6


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


def _bottleneck_config(layout: str, activation: str, modules: list[str], scale: float = 1.0) -> OwnCase:
    config = {"peft_type": "BOTTLENECK", "layout": layout, "bottleneck_size": SIZE, "activation": activation}
    return OwnCase(lambda: {**config, "target_modules": modules, "scale": scale}, make=_bottleneck)


CASES: dict[str, Case] = {
    "bottleneck-houlsby": _bottleneck_config("houlsby", "gelu", ["o_proj", "down_proj"]),
    "bottleneck-pfeiffer": _bottleneck_config("pfeiffer", "relu", ["down_proj"], scale=0.5),
    "ia3": Case(
        lambda: IA3Config(
            target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"], task_type=CLM
        ),
        fill=around_one,
    ),
    "ia3-regex": Case(
        lambda: IA3Config(
            target_modules=r".*\.(q_proj|up_proj|o_proj)", feedforward_modules=r".*\.1\..*_proj", task_type=CLM
        ),
        fill=around_one,
    ),
    "ia3-attention": Case(
        lambda: IA3Config(target_modules=["q_proj", "v_proj"], feedforward_modules=[], task_type=CLM), fill=around_one
    ),
    "beft": Case(lambda: BeftConfig(target_modules=["v_proj", "gate_proj"], task_type=CLM)),
}
