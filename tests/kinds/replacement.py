"""Parameters in the place of the base's own: layers, norms, modules saved whole, rows of single tokens."""

from __future__ import annotations

from typing import Any

import torch
from peft import LNTuningConfig, LoraConfig, TrainableTokensConfig
from torch import Tensor
from torch.nn import Parameter

from tests.kinds.case import CLM, QV, Case, OwnCase, around_one

IDS = [9, 5, 300, 64]  # as peft allows, in no order


def lora(**options: object) -> LoraConfig:
    return LoraConfig(**{"r": 4, "target_modules": QV, "task_type": CLM, **options})


def near_one(name: str, parameter: Parameter) -> None:
    """Whole modules: norms stay near one, so that nothing explodes."""
    if "norm" in name:
        torch.nn.init.normal_(parameter, mean=1.0, std=0.08)
    else:
        torch.nn.init.normal_(parameter, std=0.05)


def whole_modules(name: str, parameter: Parameter) -> None:
    """Norms around one, linear maps around zero."""
    if "gate_proj" in name:
        torch.nn.init.normal_(parameter, std=0.1)
    else:
        around_one(name, parameter)


def _freeze(config: dict[str, Any], weights: dict[str, Tensor]) -> dict[str, Tensor]:
    starts = [f"model.layers.{i}." for i in config.get("layers", [])]
    starts += [f"{module}." for module in config.get("modules", [])]
    return {n: t + torch.randn_like(t) * 0.05 for n, t in weights.items() if n.startswith(tuple(starts))}


def freeze(**options: Any) -> OwnCase:
    return OwnCase(lambda: {"peft_type": "FREEZE", **options}, make=_freeze)


CASES: dict[str, Case] = {
    "freeze-last-layer": freeze(layers=[1]),
    "freeze-norm": freeze(modules=["model.norm", "model.layers.0.mlp.up_proj"]),
    "freeze-embedding": freeze(layers=[0], modules=["model.embed_tokens"]),
    "ln-tuning": Case(lambda: LNTuningConfig(task_type=CLM), fill=around_one),
    "ln-tuning-some": Case(
        lambda: LNTuningConfig(target_modules=["1.input_layernorm", "model.norm", "gate_proj"], task_type=CLM),
        fill=whole_modules,
    ),
    "trainable-tokens": Case(lambda: TrainableTokensConfig(token_indices=IDS, task_type=CLM), std=0.08),
    "trainable-tokens-head": Case(
        lambda: TrainableTokensConfig(token_indices=[5, 7], target_modules=["lm_head"], task_type=CLM), std=0.2
    ),
    "lora-tokens": Case(lambda: lora(trainable_token_indices=IDS), std=0.08),
    "lora-tokens-apart": Case(
        lambda: lora(trainable_token_indices={"embed_tokens": IDS, "lm_head": [17, 4]}), std=0.08
    ),
    "lora-tokens-alike": Case(
        lambda: lora(trainable_token_indices={"embed_tokens": [5, 9, 17], "lm_head": [5, 9, 17]}),
        std=0.08,
    ),
    "lora-head-saved": Case(lambda: lora(modules_to_save=["lm_head"]), std=0.05),
    "lora-embedding-and-norms-saved": Case(lambda: lora(modules_to_save=["embed_tokens", "norm"]), fill=near_one),
    "lora-embedding-and-head-saved": Case(lambda: lora(modules_to_save=["embed_tokens", "lm_head"]), std=0.05),
    "lora-saved-tied": Case(lambda: lora(modules_to_save=["lm_head", "o_proj"], ensure_weight_tying=True), std=0.05),
    "lora-saved-in-lora": Case(
        lambda: lora(target_modules="all-linear", modules_to_save=["mlp", "v_proj"], bias="all")
    ),
    "lora-layer-saved": Case(lambda: lora(modules_to_save=["layers.1"]), fill=near_one),
}
