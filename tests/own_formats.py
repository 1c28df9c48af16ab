"""hotswap's own adapter formats over a stock transformers model, written independently of the server's code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

_ACTIVATIONS: dict[str, nn.Module] = {
    "relu": nn.ReLU(),
    "gelu": nn.GELU(),
    "gelu_tanh": nn.GELU(approximate="tanh"),
    "silu": nn.SiLU(),
    "tanh": nn.Tanh(),
}


def is_own(adapter: Path) -> bool:
    """Whether the package is of a format that peft does not know."""
    return json.loads((adapter / "adapter_config.json").read_text())["peft_type"] in ("BOTTLENECK", "FREEZE")


@torch.no_grad()
def apply_own(model: Any, adapter: Path) -> Any:
    """Change ``model`` in place as the adapter says; returns it."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    saved = load_file(adapter / "adapter_model.safetensors")
    tensors = {name.removeprefix("base_model.model."): tensor for name, tensor in saved.items()}
    if config["peft_type"] == "FREEZE":
        for name, tensor in tensors.items():
            model.get_parameter(name).copy_(tensor)
        return model
    for module in {name.split(".bottleneck_")[0] for name in tensors if ".bottleneck_" in name}:
        down, up = (_linear(tensors, f"{module}.bottleneck_{part}") for part in ("down", "up"))
        inner = nn.Sequential(down, _ACTIVATIONS[config["activation"]], up)
        model.get_submodule(module).register_forward_hook(_residual(inner, config.get("scale", 1.0)))
    return model


def _linear(tensors: dict[str, Tensor], name: str) -> nn.Linear:
    out_features, in_features = tensors[f"{name}.weight"].shape
    linear = nn.Linear(in_features, out_features)
    linear.load_state_dict({"weight": tensors[f"{name}.weight"], "bias": tensors[f"{name}.bias"]})
    return linear


def _residual(inner: nn.Module, scale: float) -> Any:
    return lambda module, args, y: y + scale * inner(y)
