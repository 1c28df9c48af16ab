"""A small decoder in ChatGLM2's manner, written for these tests.

Multi-query attention from one fused matrix, rotary embeddings of half of each head, interleaved, states laid out
[tokens, rows, width], and a prefix encoder of its own. It attends by itself; a prefix that is given moves no position.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from .configuration_tiny_chatglm import TinyChatGlmConfig


def rotated(x: Tensor, positions: Tensor) -> Tensor:
    """The first half of each head of ``x`` [tokens, rows, heads, width] turned, in neighbouring pairs."""
    half = x.shape[-1] // 2
    angles = positions[:, None, None, None] / 10000 ** (torch.arange(0, half, 2, device=x.device) / half)
    even, odd = x[..., 0:half:2], x[..., 1:half:2]
    turned = [even * angles.cos() - odd * angles.sin(), odd * angles.cos() + even * angles.sin()]
    return torch.cat([torch.stack(turned, -1).flatten(-2).to(x.dtype), x[..., half:]], -1)


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + self.eps)
        return (x * scale).to(x.dtype) * self.weight


class SelfAttention(nn.Module):
    def __init__(self, config: TinyChatGlmConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.width = layer, config.kv_channels
        self.heads, self.groups = config.num_attention_heads, config.multi_query_group_num
        fused = (self.heads + 2 * self.groups) * self.width
        self.query_key_value = nn.Linear(config.hidden_size, fused, bias=config.add_qkv_bias)
        self.dense = nn.Linear(self.heads * self.width, config.hidden_size, bias=False)

    def forward(self, x: Tensor, mask: Tensor, positions: Tensor, past: Any) -> Tensor:
        fused = self.query_key_value(x).view(*x.shape[:2], -1, self.width)
        query, key, value = fused.split([self.heads, self.groups, self.groups], 2)
        query, key = rotated(query, positions), rotated(key, positions)
        query, key, value = (part.permute(1, 2, 0, 3) for part in (query, key, value))  # [rows, heads, tokens, width]
        if past is not None:
            key, value = past.update(key, value, self.layer)
        key, value = (part.repeat_interleave(self.heads // self.groups, 1) for part in (key, value))
        scores = query @ key.transpose(-1, -2) / self.width**0.5
        weights = scores.float().masked_fill(~mask, float("-inf")).softmax(-1).to(value.dtype)
        attended = (weights @ value).permute(2, 0, 1, 3).flatten(2)
        dense: Tensor = self.dense(attended)
        return dense


class MLP(nn.Module):
    def __init__(self, config: TinyChatGlmConfig) -> None:
        super().__init__()
        self.dense_h_to_4h = nn.Linear(config.hidden_size, 2 * config.ffn_hidden_size, bias=False)
        self.dense_4h_to_h = nn.Linear(config.ffn_hidden_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.dense_h_to_4h(x).chunk(2, -1)
        out: Tensor = self.dense_4h_to_h(nn.functional.silu(gate) * up)
        return out


class GLMBlock(nn.Module):
    def __init__(self, config: TinyChatGlmConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.layernorm_epsilon)
        self.self_attention = SelfAttention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.layernorm_epsilon)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, mask: Tensor, positions: Tensor, past: Any) -> Tensor:
        x = x + self.self_attention(self.input_layernorm(x), mask, positions, past)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class PrefixEncoder(nn.Module):
    """Keys and values of ``pre_seq_len`` tokens for every layer, as rows [tokens, layers * 2 * groups * width]."""

    def __init__(self, config: TinyChatGlmConfig) -> None:
        super().__init__()
        width = config.num_layers * 2 * config.multi_query_group_num * config.kv_channels
        inner = width if not config.prefix_projection else config.hidden_size
        self.embedding = nn.Embedding(config.pre_seq_len or 0, inner)
        self.trans: nn.Module = nn.Identity()
        if config.prefix_projection:
            self.trans = nn.Sequential(nn.Linear(inner, inner), nn.Tanh(), nn.Linear(inner, width))

    def forward(self) -> Tensor:
        rows: Tensor = self.trans(self.embedding.weight)
        return rows


class GLMTransformer(nn.Module):
    def __init__(self, config: TinyChatGlmConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList([GLMBlock(config, i) for i in range(config.num_layers)])
        self.final_layernorm = RMSNorm(config.hidden_size, config.layernorm_epsilon)


class Embedding(nn.Module):
    def __init__(self, config: TinyChatGlmConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.padded_vocab_size, config.hidden_size)


def from_tuples(layers: Any) -> DynamicCache:
    """As published code of transformers 4 takes the past: keys and values of a layer [tokens, rows, groups, width]."""
    cache = DynamicCache()
    for layer, both in enumerate([] if isinstance(layers, DynamicCache) else layers or ()):
        cache.update(*(part.permute(1, 2, 0, 3) for part in both), layer)
    return cache


def to_tuples(cache: DynamicCache) -> tuple[tuple[Tensor, Tensor], ...]:
    return tuple((layer.keys.permute(2, 0, 1, 3), layer.values.permute(2, 0, 1, 3)) for layer in cache.layers)


class ChatGLMModel(nn.Module):
    def __init__(self, config: TinyChatGlmConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = Embedding(config)
        self.encoder = GLMTransformer(config)
        self.output_layer = nn.Linear(config.hidden_size, config.padded_vocab_size, bias=False)
        if config.pre_seq_len is not None:
            self.prefix_encoder = PrefixEncoder(config)

    def own_prefix(self, rows: int) -> DynamicCache:
        shape = (-1, self.config.num_layers, 2, self.config.multi_query_group_num, self.config.kv_channels)
        cache = DynamicCache()
        for layer, both in enumerate(self.prefix_encoder().view(shape).permute(1, 2, 3, 0, 4)):
            cache.update(*both[:, None].expand(2, rows, -1, -1, -1), layer)
        return cache

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None, positions: Tensor | None, past: Any) -> Tensor:
        if past is None and self.config.pre_seq_len is not None:
            past = self.own_prefix(len(input_ids))
        x = self.embedding.word_embeddings(input_ids).transpose(0, 1)
        before, count = 0 if past is None else past.get_seq_length(), len(x)
        seen = torch.ones(count, before + count, dtype=torch.bool, device=x.device).tril(before)[None, None]
        if attention_mask is not None:
            seen = seen & attention_mask[:, None, None, -(before + count) :].bool()
        if positions is None:
            positions = torch.arange(count, device=x.device)[None]
        for layer in self.encoder.layers:
            x = layer(x, seen, positions[0], past)
        out: Tensor = self.output_layer(self.encoder.final_layernorm(x)).transpose(0, 1)
        return out.contiguous()


class TinyChatGlmForConditionalGeneration(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    config_class = TinyChatGlmConfig

    def __init__(self, config: TinyChatGlmConfig) -> None:
        super().__init__(config)
        self.transformer = ChatGLMModel(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.transformer.embedding.word_embeddings

    def forward(  # noqa: PLR0917 - the names are those of the published model
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        inputs_embeds: Tensor | None = None,
        return_dict: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        labels: Tensor | None = None,
    ) -> Any:
        if use_cache and past_key_values is None and self.config.pre_seq_len is None:
            past_key_values = DynamicCache()
        if self.config.keeps_tuples:
            past_key_values = from_tuples(past_key_values)
        logits = self.transformer(input_ids, attention_mask, position_ids, past_key_values)
        kept = to_tuples(past_key_values) if self.config.keeps_tuples and use_cache else past_key_values
        return CausalLMOutputWithPast(logits=logits, past_key_values=kept)
