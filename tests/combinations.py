"""What combinations of adapters must answer: peft's weighted adapters, or the sum of what it merges of other kinds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from tests.factory import load

Parts = Sequence[tuple[Path, float]]


def peft_weighted(base: Path, parts: Parts, path: Path) -> Path:
    """Save, as a base of its own, ``base`` with peft's weighted LoRA of ``parts`` merged into it; returns ``path``."""
    model: Any = PeftModel.from_pretrained(load(base), parts[0][0], adapter_name="m0")
    for i, (adapter, _) in enumerate(parts[1:], 1):
        model.load_adapter(adapter, adapter_name=f"m{i}")
    names, weights = [f"m{i}" for i in range(len(parts))], [weight for _, weight in parts]
    model.add_weighted_adapter(names, weights, "combined", combination_type="cat")
    model.set_adapter("combined")
    model.merge_and_unload().save_pretrained(path)
    return path


@torch.no_grad()
def merged(base: Path, parts: Parts, path: Path) -> Path:
    """As ``peft_weighted`` for any kinds: the weighted sum of how far peft's merging of each moves every weight."""
    model = load(base)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    total = {name: torch.zeros_like(tensor) for name, tensor in before.items()}
    for adapter, weight in parts:
        alone: Any = PeftModel.from_pretrained(load(base), adapter).merge_and_unload()
        for name, tensor in alone.state_dict().items():
            total[name] += weight * (tensor - before[name])
    for name, parameter in model.state_dict().items():
        parameter.copy_(before[name] + total[name])
    model.save_pretrained(path)
    return path
