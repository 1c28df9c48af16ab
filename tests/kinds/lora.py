from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora.config import BdLoraConfig
from torch.nn import Parameter

from tests.kinds.case import CLM, QV, Case


def fill_lora(name: str, parameter: Parameter) -> None:
    """DoRA's magnitudes start as the norms of rows, and stay near them."""
    if "magnitude" in name:
        parameter.mul_(1 + 0.2 * torch.randn_like(parameter))
    else:
        parameter.normal_(std=0.1)


def lora(**options: Any) -> Case:
    return Case(lambda: LoraConfig(task_type=CLM, **{"r": 4, **options}), fill=fill_lora)


CASES: dict[str, Case] = {
    "lora-r4": Case(lambda: LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type=CLM)),
    "lora-r8": Case(lambda: LoraConfig(r=8, lora_alpha=8, target_modules="all-linear", task_type=CLM)),
    "lora-r8-attention": Case(lambda: LoraConfig(r=8, lora_alpha=16, target_modules=QV, task_type=CLM)),
    "rslora-r16": Case(
        lambda: LoraConfig(r=16, lora_alpha=8, use_rslora=True, target_modules=["o_proj", "down_proj"], task_type=CLM)
    ),
    "lora-patterns": Case(
        lambda: LoraConfig(
            r=4,
            lora_alpha=8,
            target_modules=QV,
            rank_pattern={"layers.1.self_attn.q_proj": 6},
            alpha_pattern={"v_proj": 32},
            task_type=CLM,
        )
    ),
    "lora-bias": Case(lambda: LoraConfig(r=4, target_modules=QV, bias="lora_only", task_type=CLM)),
    "lora-bias-all": Case(lambda: LoraConfig(r=4, target_modules=QV, bias="all", task_type=CLM)),
    "lora-bias-on-b": lora(target_modules=QV, lora_alpha=3, lora_bias=True),
    "dora-r4": lora(target_modules="all-linear", use_dora=True),
    "dora-rslora-patterns": lora(
        target_modules=QV,
        use_dora=True,
        use_rslora=True,
        rank_pattern={"layers.1.self_attn.q_proj": 6},
        alpha_pattern={"v_proj": 3},
    ),
    "dora-bias": lora(target_modules=QV, use_dora=True, bias="all"),
    "lora-embedding": lora(target_modules=["embed_tokens", "q_proj"]),
    "lora-head": lora(target_modules=["lm_head"]),
    "dora-embedding-and-head": lora(target_modules=["embed_tokens", "lm_head"], use_dora=True),
    "lora-tied": lora(target_modules=["embed_tokens", "v_proj"], ensure_weight_tying=True),
    "bdlora": lora(
        target_modules=["q_proj", "o_proj"],
        use_bdlora=BdLoraConfig(target_modules_bd_a=["o_proj"], target_modules_bd_b=["q_proj"], nblocks=2),
    ),
}
