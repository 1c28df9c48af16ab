"""LoRA packages as older releases saved them, every expert a module or factors swapped, and what they compute."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

ALPHA, RANK = 4, 2
LEAVES = ("gate_proj", "up_proj", "down_proj")
MIXTRAL = ("w1", "w3", "w2")
Keep = Callable[[str], bool]


def load(base: Path) -> Any:
    """The stock model."""
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager").eval()


class Saved:
    """A package of the base ``model`` in the making, and ``trained``: a stock model with the same updates merged in.

    Experts are named as transformers 4 does: below ``folder``, their maps by ``leaves``. Modules that ``keep`` does not
    take stay as they are.
    """

    def __init__(
        self, model: Any, *, folder: str = "mlp", leaves: tuple[str, ...] = LEAVES, keep: Keep = lambda name: True
    ) -> None:
        self.trained = copy.deepcopy(model)
        self.tensors: dict[str, Tensor] = {}
        self.rank: Callable[[str], int] = lambda name: RANK
        self.scale: Callable[[str], float] = lambda name: ALPHA / self.rank(name)
        self._folder, self._leaves, self._keep = folder, leaves, keep
        self._generator = torch.Generator().manual_seed(3)

    def adapt_experts(self) -> Saved:
        """Random updates of all experts."""
        for name, module in self.trained.named_modules():
            if not hasattr(module, "has_post_expert_norm"):
                continue
            gate, up, down = (f".{leaf}" for leaf in self._leaves)
            half = module.gate_up_proj.shape[1] // 2
            for expert in range(len(module.gate_up_proj)):
                saved = f"{name.replace('.mlp.', f'.{self._folder}.')}.{expert}"
                self.adapt(saved + gate, module.gate_up_proj.data[expert, :half])
                self.adapt(saved + up, module.gate_up_proj.data[expert, half:])
                self.adapt(saved + down, module.down_proj.data[expert])
        return self

    def adapt_linears(self, leaves: Collection[str]) -> Saved:
        """Random updates of linear maps outside of experts."""
        for name, module in self.trained.named_modules():
            if isinstance(module, nn.Linear) and name.rpartition(".")[2] in leaves:
                self.adapt(name, module.weight.data)
        return self

    def adapt_routers(self, leaf: str) -> Saved:
        """Random updates of what chooses experts."""
        for name, module in self.trained.named_modules():
            if "Router" in type(module).__name__:
                layer = name.rpartition(".mlp.")[0]
                self.adapt(f"{layer}.{self._folder}.{leaf}", module.weight.data)
        return self

    def adapt(self, saved: str, weight: Tensor) -> None:
        """A random update of ``weight`` [out, in], in place, saved for the module ``saved``."""
        if not self._keep(saved):
            return
        rank = self.rank(saved)
        a = torch.randn(rank, weight.shape[1], generator=self._generator) * 0.3
        b = torch.randn(weight.shape[0], rank, generator=self._generator) * 0.3
        self.tensors[f"base_model.model.{saved}.lora_A.weight"] = a
        self.tensors[f"base_model.model.{saved}.lora_B.weight"] = b
        weight += self.scale(saved) * b @ a

    def write(self, path: Path, targets: Collection[str] | str, **config: object) -> Path:
        """The package, at ``path``."""
        path.mkdir()
        save_file(self.tensors, path / "adapter_model.safetensors", metadata={"format": "pt"})
        keys = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": ALPHA, "peft_version": "0.17.1"}
        targets = targets if isinstance(targets, str) else sorted(targets)
        (path / "adapter_config.json").write_text(json.dumps({**keys, "target_modules": targets, **config}))
        return path


def swap(path: Path, version: str, counts: dict[str, int]) -> None:
    """Rewrite what peft saved of ``target_parameters`` as a release before 0.19.1 would have: factors the other way.

    ``counts`` are the experts of each module whose factors those are, by the end of its name.
    """
    from safetensors.torch import load_file

    file = path / "adapter_model.safetensors"
    tensors = load_file(file)
    for name in [name for name in tensors if name.endswith("lora_A.weight")]:
        module = name.removesuffix(".lora_A.weight")
        count = next((count for end, count in counts.items() if module.endswith(end)), 0)
        if not count:
            continue
        a, b = tensors[name], tensors[f"{module}.lora_B.weight"]
        rank = len(a) // count
        old_a, old_b = torch.empty(count * rank, len(b)), torch.empty(a.shape[1], rank * count)
        for expert in range(count):
            for k in range(rank):
                old_a[expert * rank + k] = b[:, k * count + expert]
                old_b[:, k * count + expert] = a[expert * rank + k]
        tensors[name], tensors[f"{module}.lora_B.weight"] = old_a, old_b
    save_file(tensors, file, metadata={"format": "pt"})
    config = json.loads((path / "adapter_config.json").read_text())
    (path / "adapter_config.json").write_text(json.dumps(config | {"peft_version": version}))


@torch.no_grad()
def peft_logits(base: Path, path: Path, ids: list[int]) -> Tensor:
    """What peft answers, which converts the package. Shape: [len(ids), vocab_size]."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found: Tensor = PeftModel.from_pretrained(load(base), path).eval()(torch.tensor([ids])).logits[0]
    return found


@torch.no_grad()
def logits(model: Any, ids: list[int]) -> Tensor:
    """What a stock model answers. Shape: [len(ids), vocab_size]."""
    found: Tensor = model(torch.tensor([ids])).logits[0]
    return found
