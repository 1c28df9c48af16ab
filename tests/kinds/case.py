"""One adapter configuration to test with, and what families of kinds share to make theirs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import Parameter

from tests.factory import make_adapter

Fill = Callable[[str, Parameter], None]
Make = Callable[[dict[str, Any], dict[str, Tensor]], dict[str, Tensor]]
CLM = "CAUSAL_LM"
QV = ["q_proj", "v_proj"]
BOTH = ["q_proj", "down_proj"]
MIXED = ["q_proj", "k_proj", "up_proj", "down_proj"]  # square, wide and tall


@dataclass(frozen=True)
class Case:
    """``config`` makes the peft configuration (for the tiny llama of ``tests.factory``).

    Trained parameters are drawn from N(0, ``std``), unless ``fill`` sets them (name, parameter): kinds whose parameters
    are factors near one, or parts of a matrix that must stay invertible.
    """

    config: Callable[[], Any]
    std: float = 0.1
    fill: Fill | None = None

    def save(self, base: Path, path: Path, seed: int = 1) -> Path:
        """Let peft save a random adapter of this configuration for ``base`` into ``path``; returns ``path``."""
        return make_adapter(base, path, self.config(), seed=seed, std=self.std, fill=self.fill)


@dataclass(frozen=True, kw_only=True)
class OwnCase(Case):
    """A case of hotswap's own formats, which peft does not know.

    ``config`` is the JSON without its task, and ``make`` the tensors of it and of the base's weights, without prefix.
    """

    make: Make

    def save(self, base: Path, path: Path, seed: int = 1) -> Path:
        torch.manual_seed(seed)
        config: dict[str, Any] = {"task_type": CLM, **self.config()}
        weights = load_file(base / "model.safetensors")
        path.mkdir(parents=True, exist_ok=True)
        (path / "adapter_config.json").write_text(json.dumps(config))
        tensors = {f"base_model.model.{name}": t.contiguous() for name, t in self.make(config, weights).items()}
        save_file(tensors, path / "adapter_model.safetensors")
        return path


def case(kind: Callable[..., Any], fill: Fill | None = None, std: float = 0.1, **options: Any) -> Case:
    options = {"target_modules": QV, "task_type": CLM, **options}
    return Case(lambda: kind(**options), std, fill)


def around_one(name: str, parameter: Parameter) -> None:
    """Gains that stay gains."""
    torch.nn.init.normal_(parameter, mean=0.0 if name.endswith("bias") else 1.0, std=0.2)
