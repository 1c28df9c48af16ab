"""GPT-Neo: attention without a scale, in every second layer within a window."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from server.model.attention import NAME, Rule, attend


def patch(model: PreTrainedModel) -> None:
    """Bind the attention of every block."""
    for block in model.transformer.h:
        _bind(block.attn.attention, int(model.config.window_size))
    model.config._attn_implementation = NAME  # no dense mask is made for a name without one


def _bind(module: Any, window_size: int) -> None:
    rule = Rule(scaling=1.0, window=window_size if module.attention_type == "local" else None)

    def attn(query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, None]:
        return attend(module.layer_id, query, key, value, rule).transpose(1, 2), None

    module._attn = attn
