from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from peft import (
    AdaLoraConfig,
    DeloraConfig,
    FrodConfig,
    GraloraConfig,
    LoHaConfig,
    LoKrConfig,
    PveraConfig,
    RandLoraConfig,
    TinyLoraConfig,
    UniLoraConfig,
    VBLoRAConfig,
    VeraConfig,
)
from torch.nn import Parameter

from tests.kinds.case import Case, Fill

CLM = "CAUSAL_LM"
ATTENTION = ["q_proj", "v_proj"]
MIXED = ["q_proj", "k_proj", "up_proj", "down_proj"]  # square, wide and tall
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


def near(std: float) -> Fill:
    """Add to what training begins with."""

    def fill(name: str, parameter: Parameter) -> None:
        parameter.add_(torch.randn_like(parameter) * std)

    return fill


def case(kind: Callable[..., Any], fill: Fill | None = None, std: float = 0.1, **options: Any) -> Case:
    options = {"target_modules": ATTENTION, "task_type": CLM, **options}
    return Case(lambda: kind(**options), std, fill)


CASES: dict[str, Case] = {
    "adalora": case(AdaLoraConfig, std=0.3, init_r=6, total_step=10, target_modules="all-linear"),
    "adalora-kept": case(
        AdaLoraConfig, std=0.3, init_r=6, total_step=10, rank_pattern=KEPT, lora_alpha=32, bias="lora_only"
    ),
    "adalora-without-alpha": case(AdaLoraConfig, std=0.3, init_r=3, total_step=10, lora_alpha=0),
    "vera": case(VeraConfig, r=8, std=0.4, target_modules=MIXED),
    "vera-drawn": case(VeraConfig, r=16, std=0.4, save_projection=False, projection_prng_key=7, bias="vera_only"),
    "pvera": case(PveraConfig, r=8, std=0.4, target_modules=MIXED, bias="all"),
    "pvera-drawn": case(PveraConfig, r=8, std=0.4, target_modules=["o_proj", "gate_proj"], save_projection=False),
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
    "randlora": case(RandLoraConfig, std=0.1, r=8, randlora_alpha=6, target_modules=MIXED, bias="randlora_only"),
    "randlora-drawn": case(RandLoraConfig, std=0.1, r=7, randlora_alpha=6, target_modules=MIXED, save_projection=False),
    "randlora-sparse": case(RandLoraConfig, std=0.1, r=10, randlora_alpha=6, sparse=True, save_projection=False),
    "randlora-very-sparse": case(
        RandLoraConfig, std=0.1, r=10, randlora_alpha=6, very_sparse=True, save_projection=False
    ),
    "vblora": case(VBLoRAConfig, std=0.4, num_vectors=20, vector_length=16, topk=3, target_modules=MIXED),
    "vblora-topk": case(
        VBLoRAConfig, std=0.4, r=3, num_vectors=300, vector_length=8, save_only_topk_weights=True, bias="vblora_only"
    ),
    "vblora-top1": case(VBLoRAConfig, std=0.4, num_vectors=9, vector_length=32, topk=1, save_only_topk_weights=True),
    "tinylora": case(TinyLoraConfig, std=0.3, r=2, u=5, target_modules=MIXED, weight_tying=0.4, bias="tinylora_only"),
    "tinylora-drawn": case(TinyLoraConfig, std=0.3, r=40, u=3, target_modules=MIXED, save_projection=False),
    "tinylora-embedding": case(
        TinyLoraConfig, std=0.2, u=9, target_modules=["embed_tokens", "o_proj"], weight_tying=1.0
    ),
    "unilora": case(UniLoraConfig, std=1.0, target_modules=MIXED, theta_d_length=100),
    "unilora-saved": case(UniLoraConfig, std=1.0, r=2, save_indices=True, target_modules="all-linear", proj_seed=3),
    "unilora-longer": case(UniLoraConfig, std=0.3, r=1, theta_d_length=2000, bias="all"),
    "gralora": case(GraloraConfig, std=0.1, r=4, alpha=8, target_modules=MIXED),
    "gralora-hybrid": case(GraloraConfig, std=0.1, r=8, alpha=8, hybrid_r=3, gralora_k=4, bias="gralora_only"),
    "delora": case(DeloraConfig, stds(delora_lambda=2.0), r=4, target_modules=MIXED, bias="delora_only"),
    "delora-patterns": case(
        DeloraConfig, stds(delora_lambda=2.0), r=4, rank_pattern={"q_proj": 2}, lambda_pattern={"v_proj": 3}
    ),
    "frod": case(FrodConfig, near(0.1), progressbar=False, sparse_rate=0.1),
    "frod-mixed": case(FrodConfig, near(0.05), progressbar=False, target_modules=MIXED, bias="frod_only"),
    "frod-diagonal": case(FrodConfig, near(0.1), progressbar=False, sparse_rate=0),
}
