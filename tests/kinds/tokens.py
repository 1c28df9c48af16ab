from __future__ import annotations

import torch
from peft import LoraConfig, TrainableTokensConfig

from tests.kinds.case import Case

CLM = "CAUSAL_LM"
IDS = [9, 5, 300, 64]  # as peft allows, in no order


def lora(**options: object) -> LoraConfig:
    return LoraConfig(**{"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": CLM, **options})


def near_one(name: str, parameter: torch.nn.Parameter) -> None:
    """Whole modules: norms stay near one, so that nothing explodes."""
    if "norm" in name:
        torch.nn.init.normal_(parameter, mean=1.0, std=0.08)
    else:
        torch.nn.init.normal_(parameter, std=0.05)


CASES: dict[str, Case] = {
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
