"""Kinds that rotate a module's input or output."""

from __future__ import annotations

from typing import Any

import torch
from peft import BOFTConfig, HRAConfig, OFTConfig, RoadConfig
from peft.tuners.boft import layer as boft_layer
from torch import Tensor
from torch.nn import Parameter

from tests.kinds.case import BOTH, CLM, QV, Case


class BlockDiagonal:
    """What peft's CUDA extension computes, without which it trains a single butterfly factor."""

    def forward(self, blocks: Tensor) -> list[Tensor]:
        dense: list[Tensor] = [torch.block_diag(*factor) for factor in blocks]  # type: ignore[no-untyped-call]
        return [torch.stack(dense)]

    def backward(self, gradient: Tensor, blocks: Tensor) -> list[Tensor]:
        size = blocks.shape[-1]
        parts = [gradient[:, i : i + size, i : i + size] for i in range(0, gradient.shape[-1], size)]
        return [torch.stack(parts, 1)]


boft_layer._FBD_CUDA = BlockDiagonal()


def near_one(name: str, parameter: Parameter) -> None:
    """Rotations of a few degrees, gains near one."""
    torch.nn.init.normal_(parameter, mean=1.0 if name.split(".")[-2] in ("boft_s", "road_alpha") else 0.0, std=0.1)


def oft(**options: Any) -> Case:
    return Case(lambda: OFTConfig(**{"target_modules": QV, "task_type": CLM, **options}))


def boft(**options: Any) -> Case:
    return Case(lambda: BOFTConfig(**{"target_modules": BOTH, "task_type": CLM, **options}), fill=near_one)


def hra(**options: Any) -> Case:
    return Case(lambda: HRAConfig(**{"target_modules": QV, "task_type": CLM, **options}))


def road(**options: Any) -> Case:
    return Case(lambda: RoadConfig(**{"target_modules": BOTH, "task_type": CLM, **options}), fill=near_one)


CASES: dict[str, Case] = {
    "oft-8": oft(oft_block_size=8),
    "oft-r4": oft(oft_block_size=0, r=4, target_modules="all-linear"),
    "oft-exact": oft(oft_block_size=16, use_cayley_neumann=False, bias="oft_only"),
    "oft-shared": oft(oft_block_size=16, block_share=True, target_modules=BOTH, bias="all"),
    "oft-constrained": oft(oft_block_size=8, coft=True, eps=0.8),
    "oft-terms": oft(oft_block_size=4, num_cayley_neumann_terms=3),
    "oft-embedding": oft(oft_block_size=16, target_modules=["embed_tokens", "v_proj"]),
    "boft-4": boft(boft_block_size=4),
    "boft-butterfly": boft(boft_block_size=4, boft_n_butterfly_factor=3, bias="boft_only"),
    "boft-wide": boft(boft_block_size=16, boft_n_butterfly_factor=4, target_modules=["down_proj"]),
    "boft-num": boft(boft_block_size=0, boft_block_num=8, boft_n_butterfly_factor=2, bias="all"),
    "hra-r4": hra(r=4),
    "hra-r3": hra(r=3, init_weights=False, target_modules=BOTH, bias="hra_only"),
    "hra-orthogonal": hra(r=6, apply_GS=True, target_modules=["o_proj", "up_proj"]),
    "road-1": road(group_size=32),
    "road-2": road(variant="road_2", group_size=16),
    "road-4": road(variant="road_4", group_size=8),
}
