"""Which optimizer a run uses, by transformers' names, and LoRA+'s learning rate for B."""

from __future__ import annotations

from typing import Any

import torch

_NAMES = {
    "adamw": "adamw_torch",
    "adamw_8bit": "adamw_bnb_8bit",
    "paged_adamw_8bit": "paged_adamw_8bit",
    "lion": "lion_32bit",
    "lion_8bit": "lion_8bit",
    "adafactor": "adafactor",
    "sgd": "sgd",
}


def transformers_name(optimizer: str, on_cpu: bool) -> str:
    """The name by which transformers knows ``optimizer``. On CPU there is nothing to page out to."""
    return _NAMES[optimizer.removeprefix("paged_") if on_cpu else optimizer]


def raise_rate_of_b(optimizer: torch.optim.Optimizer, model: torch.nn.Module, ratio: float) -> None:
    """Let LoRA's B learn ``ratio`` times as fast as the rest (LoRA+, Hayou et al. 2024), in groups of its own."""
    of_b = {id(value) for name, value in model.named_parameters() if "lora_B" in name or "lora_embedding_B" in name}
    for group in list(optimizer.param_groups):
        fast = [parameter for parameter in group["params"] if id(parameter) in of_b]
        if not fast:
            continue
        group["params"] = [parameter for parameter in group["params"] if id(parameter) not in of_b]
        settings: dict[str, Any] = {key: value for key, value in group.items() if key != "params"}
        optimizer.add_param_group({**settings, "params": fast, "lr": group["lr"] * ratio})
