"""Folders as sentence-transformers saves them, and the vectors that it makes by them, in plain torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

MEAN = {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False, "include_prompt": True}
PROMPT = "Instruct: find it\nQuery: "


@dataclass(frozen=True)
class DenseLayer:
    """A layer of theirs; ``residual`` is a matrix, or the vectors themselves."""

    linear: nn.Linear
    activation: nn.Module
    residual: nn.Linear | bool | None = False

    @classmethod
    def of(
        cls, inputs: int, outputs: int, activation: nn.Module, *, bias: bool = True, residual: bool = False
    ) -> DenseLayer:
        linear = nn.Linear(inputs, outputs, bias=bias)
        nn.init.normal_(linear.weight, std=0.3)
        matrix = nn.Linear(inputs, outputs, bias=False) if residual and inputs != outputs else residual
        return cls(linear, activation, matrix)

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        out: Tensor = self.activation(self.linear(x))
        if self.residual is True:
            return out + x
        return out + self.residual(x) if isinstance(self.residual, nn.Linear) else out

    def save(self, folder: Path) -> None:
        folder.mkdir()
        kind = type(self.activation)
        config = {
            "in_features": self.linear.in_features,
            "out_features": self.linear.out_features,
            "bias": self.linear.bias is not None,
            "activation_function": f"{kind.__module__}.{kind.__name__}",
            **({"use_residual": True} if self.residual else {}),
        }
        (folder / "config.json").write_text(json.dumps(config))
        tensors = {f"linear.{name}": tensor.data for name, tensor in self.linear.named_parameters()}
        if isinstance(self.residual, nn.Linear):
            tensors["residual.weight"] = self.residual.weight.data
        save_file(tensors, folder / "model.safetensors")


def write_modules(
    path: Path,
    pooling: dict[str, Any],
    *others: str | DenseLayer,
    prompts: dict[str, Any] | None = None,
) -> Path:
    """Write the files of sentence-transformers into the folder ``path``."""
    kinds = ["Transformer", "Pooling", *(one if isinstance(one, str) else "Dense" for one in others)]
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    (path / "1_Pooling").mkdir(parents=True, exist_ok=True)
    (path / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 64, **pooling}))
    (path / "modules.json").write_text(json.dumps(modules))
    told = prompts or {"prompts": {"query": PROMPT, "document": ""}}
    (path / "config_sentence_transformers.json").write_text(json.dumps(told))
    for i, one in enumerate(others, 2):
        if isinstance(one, DenseLayer):
            one.save(path / f"{i}_Dense")
    return path


@torch.no_grad()
def pooled(states: Tensor, mode: str, skip: int = 0) -> Tensor:
    """The vector of one text of hidden ``states`` [length, size], of which the first ``skip`` are a prompt's."""
    places = torch.arange(1.0, len(states) + 1)[skip:, None]
    states = states[skip:]
    made: dict[str, Tensor] = {
        "mean": states.mean(0),
        "lasttoken": states[-1],
        "cls": states[0],
        "max": states.max(0).values,
        "mean_sqrt_len_tokens": states.sum(0) / len(states) ** 0.5,
        "weightedmean": (states * places).sum(0) / places.sum(),
    }
    return made[mode]


def through(vector: Tensor, layers: Sequence[DenseLayer]) -> Tensor:
    """``vector`` through all ``layers``."""
    for layer in layers:
        vector = layer(vector)
    return vector
