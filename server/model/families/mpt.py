"""MPT: ALiBi with slopes of its own."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from server.model.attention import Rule, attend


def patch(model: PreTrainedModel) -> None:
    """Bind the attention of every block. MPT cannot do without its dense mask, which is then not read."""
    for block in model.transformer.blocks:
        _bind(block.attn)


def mpt_slopes(num_heads: int, bias_max: int = 8) -> Tensor:
    """The slope of every head, [num_heads] in fp32.

    Semantics: ``2 ** (-bias_max (h + 1) / n)`` with n the power of two above; of those the second, fourth .. come
    first when n is not ``num_heads``.
    """
    above: int = 2 ** math.ceil(math.log2(num_heads))
    slopes = 1.0 / 2 ** (torch.arange(1, above + 1) * (bias_max / above))
    return slopes if above == num_heads else torch.cat([slopes[1::2], slopes[::2]])[:num_heads]


def _bind(module: Any) -> None:
    slopes = mpt_slopes(module.n_heads)

    def bias(positions: Tensor) -> Tensor:
        return slopes.to(positions.device)[:, None] * positions

    rule = Rule(scaling=module.softmax_scale, bias=bias)

    def forward(hidden_states: Tensor, **_: Any) -> tuple[Tensor, None]:
        fused = module.Wqkv(hidden_states)
        if module.clip_qkv:
            fused = fused.clamp(min=-module.clip_qkv, max=module.clip_qkv)
        heads = (*fused.shape[:2], module.n_heads, module.head_dim)
        query, key, value = (part.reshape(heads).transpose(1, 2) for part in fused.chunk(3, dim=2))
        out = attend(module.layer_idx, query, key, value, rule)
        return module.out_proj(out.flatten(2)), None

    module.forward = forward
