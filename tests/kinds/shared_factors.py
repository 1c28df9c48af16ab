"""Kinds whose modules share factors: random ones, a bank of vectors, a basis of the weights."""

from __future__ import annotations

import torch
from peft import FrodConfig, PveraConfig, RandLoraConfig, TinyLoraConfig, UniLoraConfig, VBLoRAConfig, VeraConfig
from torch.nn import Parameter

from tests.kinds.case import MIXED, Case, Fill, case


def near(std: float) -> Fill:
    """Add to what training begins with."""

    def fill(name: str, parameter: Parameter) -> None:
        parameter.add_(torch.randn_like(parameter) * std)

    return fill


CASES: dict[str, Case] = {
    "vera": case(VeraConfig, r=8, std=0.4, target_modules=MIXED),
    "vera-drawn": case(VeraConfig, r=16, std=0.4, save_projection=False, projection_prng_key=7, bias="vera_only"),
    "pvera": case(PveraConfig, r=8, std=0.4, target_modules=MIXED, bias="all"),
    "pvera-drawn": case(PveraConfig, r=8, std=0.4, target_modules=["o_proj", "gate_proj"], save_projection=False),
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
    "frod": case(FrodConfig, near(0.1), progressbar=False, sparse_rate=0.1),
    "frod-mixed": case(FrodConfig, near(0.05), progressbar=False, target_modules=MIXED, bias="frod_only"),
    "frod-diagonal": case(FrodConfig, near(0.1), progressbar=False, sparse_rate=0),
}
