"""BLOOM: a bias that grows with the key's position (ALiBi, https://huggingface.co/papers/2108.12409)."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from server.model.attention import NAME, Rule, attend
from server.model.families.alibi import alibi_slopes


def patch(model: PreTrainedModel) -> None:
    """Bind the attention of every block."""
    for block in model.transformer.h:
        _bind(block.self_attention)
    model.config._attn_implementation = NAME  # no dense mask is made for a name without one


def _bind(module: Any) -> None:
    slopes = alibi_slopes(module.num_heads)

    def bias(positions: Tensor) -> Tensor:
        return slopes.to(positions.device)[:, None] * positions

    rule = Rule(scaling=module.inv_norm_factor, bias=bias)

    def forward(hidden_states: Tensor, residual: Tensor, **_: Any) -> tuple[Tensor, None]:
        query, key, value = module._reshape(module.query_key_value(hidden_states))
        out = attend(module.layer_idx, query, key, value, rule)
        return residual + module.dense(out.flatten(2)), None

    module.forward = forward
