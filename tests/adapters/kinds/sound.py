"""Sound packages of kinds that have a few tensors a module, and what is refused of every such kind."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from adapters.compiling import compile_package
from adapters.errors import AdapterError
from adapters.kinds.registry import KINDS
from adapters.limits import DEFAULT_LIMITS
from adapters.ops import Adapter
from adapters.package.reading import read_package
from tests.adapters.support import SMALL_SPEC, write_raw

LINEARS = [f"model.layers.{i}.attn.q_proj" for i in range(2)]  # [8, 16]
NORMS = {f"model.layers.{i}.norm.{name}": (16,) for i in range(2) for name in ("weight", "bias")}
SPEC = replace(
    SMALL_SPEC,
    parameters={**NORMS, **{f"{name}.weight": (8, 16) for name in SMALL_SPEC.linears}},
    biases={**SMALL_SPEC.biases, **{f"model.layers.{i}.norm": torch.zeros(16) for i in range(2)}},
    weight=lambda name: torch.ones(SMALL_SPEC.linears[name]),
)
Options = dict[str, Any]
Changes = Mapping[str, Tensor | None]
Refusal = tuple[str, Options, Changes, type[AdapterError], str]  # of a kind; the error, and words of it
_JSON: st.SearchStrategy[object] = (
    st.none() | st.booleans() | st.integers(-3, 40) | st.floats() | st.text(max_size=3) | st.just([])
)


@dataclass(frozen=True)
class SoundPackage:
    """A package of ``kind`` for SPEC: what it says beside its targets, and the tensors of each adapted module."""

    kind: str
    options: Options
    parameters: Mapping[str, Tensor]
    targets: str = "q_proj"
    modules: tuple[str, str] = (LINEARS[0], LINEARS[1])

    def config(self, **options: Any) -> Options:
        return {
            "peft_type": self.kind,
            "task_type": "CAUSAL_LM",
            "target_modules": [self.targets],
            **self.options,
            **options,
        }

    def name(self, layer: int, parameter: str) -> str:
        return f"base_model.model.{self.modules[layer]}.{parameter}"

    def tensors(self) -> dict[str, Tensor]:
        return {self.name(i, key): tensor.clone() for i in range(2) for key, tensor in self.parameters.items()}

    def compile(self, path: Path, options: Options, changes: Changes) -> Adapter:
        """Compile it with other options, and with tensors of layer 0 (by parameter) changed or left out."""
        found = self.tensors()
        for key, tensor in changes.items():
            full = key if key.startswith("base_model") else self.name(0, key)
            found.pop(full, None)
            if tensor is not None:
                found[full] = tensor
        return compile_package(read_package(write_raw(path, self.config(**options), found)), SPEC)


def check_accepted(sound: SoundPackage, path: Path) -> None:
    adapter = sound.compile(path, {}, {})
    assert len(adapter.ops) == 2
    assert adapter.kind == KINDS[sound.kind].config.KIND


def check_refusals_of_every_kind(sound: SoundPackage, path: Path) -> None:
    first = next(iter(sound.parameters))

    def refused(words: str, options: Options, changes: Changes) -> None:
        with pytest.raises(AdapterError, match=words):
            sound.compile(path, options, changes)

    for key, tensor in sound.parameters.items():
        refused(f"{key}' is missing", {}, {key: None})
        refused(rf"{key}' has shape \[{tensor.shape[0] + 1}", {}, {key: torch.ones(len(tensor) + 1, *tensor.shape[1:])})
        refused("has shape|holds integers", {}, {key: torch.ones(())})
        refused("dtype 'I64'", {}, {key: torch.ones(tensor.shape, dtype=torch.int64)})
        if tensor.is_floating_point():
            refused("NaN or infinity", {}, {key: torch.full(tensor.shape, torch.nan)})
    refused("is unknown", {}, {"surprise": torch.ones(1)})
    refused("is unknown", {}, {"lora_A.weight": torch.ones(1)})
    refused("the unknown key 'surprise'", {"surprise": 1}, {})
    refused("matches no", {}, {f"base_model.model.model.layers.7.attn.q_proj.{first}": sound.parameters[first]})
    refused("is missing: target_modules|matches no", {"target_modules": ["q_proj", "v_proj", "norm"]}, {})
    refused("does not name", {"target_modules": [sound.modules[0].removeprefix("model.layers.")]}, {})
    refused("not a regular expression", {"target_modules": "("}, {})


def check_refused(sound: Mapping[str, SoundPackage], case: Refusal, path: Path) -> None:
    kind, options, changes, error, words = case
    with pytest.raises(error, match=words):
        sound[kind].compile(path, options, changes)


def check_any_value(sound: SoundPackage, data: st.DataObject) -> None:
    """Any values in the configuration are read, or refused in words."""
    config = KINDS[sound.kind].config
    raw = sound.config()
    for key in data.draw(st.lists(st.sampled_from([*config.__struct_fields__, *config.IGNORED]), max_size=3)):
        raw[key] = data.draw(_JSON)
    with contextlib.suppress(AdapterError):
        config.parse(raw, DEFAULT_LIMITS).semantics()
