"""Falcon: rotary embeddings, or ALiBi in the RefinedWeb models; one to all KV heads."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.falcon import modeling_falcon

from server.model.attention import NAME, Rule, attend
from server.model.families.alibi import alibi_slopes


def patch(model: PreTrainedModel) -> None:
    """Bind the attention of every block."""
    for block in model.transformer.h:
        _bind(block.self_attention, bool(model.config.alibi))
    model.config._attn_implementation = NAME  # no dense mask is made for a name without one


def use_plain_linears() -> None:
    """Let models that are made from now on have torch's linear maps, of which Falcon's are a copy.

    Only those themselves, no class derived from them, are replaced by quantized ones.
    """
    modeling_falcon.FalconLinear = nn.Linear


def _bind(module: Any, has_alibi: bool) -> None:
    scaling: float = module.inv_norm_factor
    slopes = alibi_slopes(module.num_heads).bfloat16()  # which Falcon rounds its bias to, whatever it computes in

    def bias(positions: Tensor) -> Tensor:
        return (slopes.to(positions.device)[:, None] * positions).float() * scaling

    rule = Rule(scaling=scaling, bias=bias if has_alibi else None)

    def forward(
        hidden_states: Tensor,
        alibi: Tensor | None,
        attention_mask: Tensor | None,
        position_embeddings: tuple[Tensor, Tensor],
        **_: Any,
    ) -> tuple[Tensor, None]:
        heads = module._split_heads(module.query_key_value(hidden_states))
        query, key, value = (part.transpose(1, 2) for part in heads)
        if not has_alibi:
            query, key = modeling_falcon.apply_rotary_pos_emb(query, key, *position_embeddings)
        out = attend(module.layer_idx, query, key, value, rule)
        return module.dense(out.flatten(2)), None

    module.forward = forward
