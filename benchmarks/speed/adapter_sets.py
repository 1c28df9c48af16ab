"""Writes the adapters that are served: sixteen random LoRA, and sixteen of mixed kinds. PEFT packages all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import (
    IA3Config,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    VeraConfig,
    get_peft_model,
)
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

COUNT = 16
_ALL: dict[str, Any] = {"target_modules": "all-linear", "task_type": "CAUSAL_LM"}
_TASK: dict[str, Any] = {"task_type": "CAUSAL_LM"}
MIXED: dict[str, Callable[[], Any]] = {
    "lora": lambda: LoraConfig(r=8, lora_alpha=16, **_ALL),
    "dora": lambda: LoraConfig(r=8, lora_alpha=16, use_dora=True, **_ALL),
    "ia3": lambda: IA3Config(
        target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"], **_TASK
    ),
    "prefix": lambda: PrefixTuningConfig(num_virtual_tokens=16, **_TASK),
    "prompt": lambda: PromptTuningConfig(num_virtual_tokens=16, **_TASK),
    "loha": lambda: LoHaConfig(r=4, target_modules=["q_proj", "v_proj"], **_TASK),
    "lokr": lambda: LoKrConfig(r=4, target_modules=["q_proj", "v_proj"], **_TASK),
    "vera": lambda: VeraConfig(r=64, target_modules=["q_proj", "o_proj"], **_TASK),
    "oft": lambda: OFTConfig(oft_block_size=32, target_modules=["q_proj", "v_proj"], **_TASK),
}


def write_sets(base: Path, out: Path) -> dict[str, tuple[Path, ...]]:
    """The sets ``none``, ``one``, ``sixteen``, ``mixed`` and ``sized``; what is there already is taken as it is.

    ``sized`` are the sixteen again, for a server with a small KV cache.
    """
    disable_progress_bar()
    loras = tuple(out / f"l{number}" for number in range(COUNT))
    mixed = tuple(out / f"{list(MIXED)[number % len(MIXED)]}-{number}" for number in range(COUNT))
    for number, path in enumerate(loras):
        _write(base, path, MIXED["lora"], seed=number)
    for number, path in enumerate(mixed):
        _write(base, path, MIXED[path.name.split("-")[0]], seed=COUNT + number)
    return {"none": (), "one": loras[:1], "sixteen": loras, "mixed": mixed, "sized": loras}


def _write(base: Path, path: Path, config: Callable[[], Any], seed: int) -> None:
    if (path / "adapter_config.json").is_file():
        return
    torch.manual_seed(seed)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16), config())
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "prompt" not in name:
            parameter.data.add_(torch.randn_like(parameter) * 0.02)  # each changes the text
    model.save_pretrained(path)
