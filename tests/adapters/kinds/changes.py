"""Sound packages changed for the worse, and what is said of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from adapters.compiling import compile_package
from adapters.package.reading import read_package
from tests.adapters.support import refusal, spec_of

Change = Callable[[dict[str, Any], dict[str, Tensor]], object]  # of configuration and tensors, in place


def drop(name: str) -> Change:
    return lambda config, tensors: tensors.pop(name)


def put(name: str, tensor: Tensor) -> Change:
    return lambda config, tensors: tensors.update({name: tensor})


def say(**values: Any) -> Change:
    return lambda config, tensors: config.update(values)


def change(name: str, how: Callable[[Tensor], Tensor]) -> Change:
    return lambda config, tensors: tensors.update({name: how(tensors[name]).contiguous().clone()})


def first(value: int) -> Callable[[Tensor], Tensor]:
    """Another first number of a tensor of indices."""

    def how(indices: Tensor) -> Tensor:
        changed = indices.clone()
        changed.view(-1)[0] = value
        return changed

    return how


def refusal_of(base: Path, package: Path, how: Change, path: Path) -> str:
    """What is said of ``package``, changed, in ``path``; empty when it is accepted."""
    config = json.loads((package / "adapter_config.json").read_text())
    tensors = load_file(package / "adapter_model.safetensors")
    how(config, tensors)
    (path / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, path / "adapter_model.safetensors")
    return refusal(lambda: compile_package(read_package(path), spec_of(base)))
