"""GPT-J and CodeGen: only the attention itself is replaced, behind their own projections and rotary embeddings."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from server.model.attention import NAME, Rule, attend


def patch(model: PreTrainedModel) -> None:
    """Bind the attention of every block."""
    for block in model.transformer.h:
        _bind(block.attn)
    model.config._attn_implementation = NAME  # no dense mask is made for a name without one


def _bind(module: Any) -> None:
    rule = Rule(scaling=1 / module.scale_attn)

    def attn(query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, None]:
        query, key = query.to(value.dtype), key.to(value.dtype)  # CodeGen rotates in fp32
        return attend(module.layer_idx, query, key, value, rule).transpose(1, 2), None

    module._attn = attn
