"""A small decoder in GLM's manner: fused projections, rotary embeddings of half of each head, interleaved."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import eager_attention_forward

from .configuration_tiny_glm import TinyGlmConfig


def rotate(x: Tensor, positions: Tensor, dim: int) -> Tensor:
    angles = positions[..., None] / 10000 ** (torch.arange(0, dim, 2, device=x.device) / dim)
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    even, odd, rest = x[..., 0:dim:2], x[..., 1:dim:2], x[..., dim:]
    turned = torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2)
    return torch.cat([turned.to(x.dtype), rest], dim=-1)


class TinyGlmAttention(nn.Module):
    def __init__(self, config: TinyGlmConfig, layer_idx: int) -> None:
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = config.hidden_size // self.heads
        self.num_key_value_groups = self.heads // self.kv_heads
        self.scaling = self.head_dim**-0.5
        self.query_key_value = nn.Linear(config.hidden_size, (self.heads + 2 * self.kv_heads) * self.head_dim)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor, mask: Tensor | None, positions: Tensor, past: Any) -> Tensor:
        fused = self.query_key_value(x).view(*x.shape[:2], -1, self.head_dim).transpose(1, 2)
        query, key, value = fused.split([self.heads, self.kv_heads, self.kv_heads], dim=1)
        query, key = (rotate(part, positions, self.config.rotary_dim) for part in (query, key))
        if past is not None:
            key, value = past.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        out, _ = attend(self, query, key, value, mask, dropout=0.0, scaling=self.scaling)
        dense: Tensor = self.dense(out.reshape(x.shape))
        return dense


class TinyGlmBlock(nn.Module):
    def __init__(self, config: TinyGlmConfig, layer_idx: int) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size)
        self.self_attention = TinyGlmAttention(config, layer_idx)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size)
        self.dense_h_to_4h = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.dense_4h_to_h = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor, mask: Tensor | None, positions: Tensor, past: Any) -> Tensor:
        x = x + self.self_attention(self.input_layernorm(x), mask, positions, past)
        gate, up = self.dense_h_to_4h(self.post_attention_layernorm(x)).chunk(2, dim=-1)
        out: Tensor = x + self.dense_4h_to_h(F.silu(gate) * up)
        return out


class TinyGlmForCausalLM(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    config_class = TinyGlmConfig
    _supports_attention_backend = True
    _supports_sdpa = True

    def __init__(self, config: TinyGlmConfig) -> None:
        super().__init__(config)
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([TinyGlmBlock(config, i) for i in range(config.num_hidden_layers)])
        self.final_layernorm = nn.RMSNorm(config.hidden_size)
        self.output_layer = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.word_embeddings

    def get_output_embeddings(self) -> nn.Module:
        return self.output_layer

    def forward(  # noqa: PLR0917 - the signature is transformers'
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        **_: Any,
    ) -> Any:
        x = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        before = 0 if past_key_values is None else past_key_values.get_seq_length()
        if position_ids is None:
            position_ids = torch.arange(before, before + x.shape[1], device=x.device)[None]
        mask = create_causal_mask(self.config, x, attention_mask, past_key_values, position_ids=position_ids)
        for layer in self.layers:
            x = layer(x, mask, position_ids, past_key_values)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.output_layer(self.final_layernorm(x)[:, kept])
        return CausalLMOutputWithPast(logits=logits, past_key_values=past_key_values)
