"""Kinds whose update of a linear map is a product of factors of its own."""

from __future__ import annotations

from typing import Any

from peft import AdaLoraConfig, DeloraConfig, GraloraConfig, LoHaConfig, LoKrConfig, MissConfig
from torch.nn import Parameter

from tests.kinds.case import BOTH, CLM, MIXED, Case, Fill, case

KEPT = {
    "model.layers.0.self_attn.q_proj.lora_E": [True, False, True, True, False, False],
    "model.layers.0.self_attn.v_proj.lora_E": [True] * 6,
    "model.layers.1.self_attn.q_proj.lora_E": [False, False, False, False, False, True],
    "model.layers.1.self_attn.v_proj.lora_E": [False] * 6,
}


def stds(**by_name: float) -> Fill:
    """Draw each parameter with the first standard deviation whose key is part of its name; 0.1 otherwise."""

    def fill(name: str, parameter: Parameter) -> None:
        std = next((std for part, std in by_name.items() if part in name), 0.1)
        parameter.normal_(std=std)

    return fill


def miss(**options: Any) -> Case:
    return Case(lambda: MissConfig(**{"target_modules": BOTH, "task_type": CLM, **options}), std=0.03)


CASES: dict[str, Case] = {
    "adalora": case(AdaLoraConfig, std=0.3, init_r=6, total_step=10, target_modules="all-linear"),
    "adalora-kept": case(
        AdaLoraConfig, std=0.3, init_r=6, total_step=10, rank_pattern=KEPT, lora_alpha=32, bias="lora_only"
    ),
    "adalora-without-alpha": case(AdaLoraConfig, std=0.3, init_r=3, total_step=10, lora_alpha=0),
    "loha": case(LoHaConfig, std=0.3, r=3, alpha=4, target_modules=MIXED),
    "loha-of-higher-rank": case(LoHaConfig, std=0.25, r=9, alpha=5),
    "loha-patterns": case(LoHaConfig, std=0.3, r=2, rank_pattern={"q_proj": 6}, alpha_pattern={"1.*v_proj": 3}),
    "lokr": case(LoKrConfig, std=0.25, r=2, alpha=4, target_modules="all-linear"),
    "lokr-whole": case(LoKrConfig, std=0.2, r=64, alpha=64, decompose_factor=4, target_modules=MIXED),
    "lokr-both": case(
        LoKrConfig,
        std=0.3,
        r=3,
        decompose_both=True,
        target_modules=MIXED,
        rank_pattern={"up_proj": 2},
        alpha_pattern={"q_proj": 20},
    ),
    "lokr-factor": case(LoKrConfig, std=0.2, r=3, decompose_factor=7),
    "gralora": case(GraloraConfig, std=0.1, r=4, alpha=8, target_modules=MIXED),
    "gralora-hybrid": case(GraloraConfig, std=0.1, r=8, alpha=8, hybrid_r=3, gralora_k=4, bias="gralora_only"),
    "delora": case(DeloraConfig, stds(delora_lambda=2.0), r=4, target_modules=MIXED, bias="delora_only"),
    "delora-patterns": case(
        DeloraConfig, stds(delora_lambda=2.0), r=4, rank_pattern={"q_proj": 2}, lambda_pattern={"v_proj": 3}
    ),
    "miss-r8": miss(r=8),
    "miss-padded": miss(r=12, bias="MiSS_only"),
    "miss-mini": miss(r=8, init_weights="mini", mini_r=16),
    "miss-bat": miss(r=16, init_weights="bat", bias="all"),
    "miss-random": miss(r=4, init_weights=False),
}
