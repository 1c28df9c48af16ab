"""A small decoder in Yuan2's manner, written for these tests: localized filtering before queries and keys.

Two causal convolutions over two tokens each stand before them, so a token needs more of the past than keys and values.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb, eager_attention_forward

from .configuration_tiny_yuan import TinyYuanConfig


class LocalizedFiltering(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width // 2, (2, 1))
        self.conv2 = nn.Conv2d(width // 2, width, (2, 1))
        self.output_layernorm = nn.RMSNorm(width)

    def forward(self, x: Tensor, before: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Shape: ``x`` [rows, tokens, width]; ``before`` the last input of each convolution, [rows, 1, ..]."""
        rows, _, width = x.shape
        first, second = before or (x.new_zeros(rows, 1, width), x.new_zeros(rows, 1, width // 2))
        between = self._convolved(self.conv1, torch.cat([first, x], 1))
        out = self._convolved(self.conv2, torch.cat([second, between], 1))
        return self.output_layernorm(out + x), (x[:, -1:], between[:, -1:])

    @staticmethod
    def _convolved(conv: nn.Module, x: Tensor) -> Tensor:
        out: Tensor = conv(x.transpose(1, 2)[..., None])[..., 0].transpose(1, 2)
        return out


class YuanAttention(nn.Module):
    def __init__(self, config: TinyYuanConfig, layer_idx: int) -> None:
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.num_key_value_groups, self.scaling = 1, self.head_dim**-0.5
        self.lf_gate = LocalizedFiltering(config.hidden_size)
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            nn.Linear(config.hidden_size, config.hidden_size, bias=False) for _ in range(4)
        )

    def forward(self, x: Tensor, mask: Tensor | None, turn: tuple[Tensor, Tensor], past: Any) -> Tensor:
        states = {} if past is None else past.__dict__.setdefault("filtered", {})
        filtered, states[self.layer_idx] = self.lf_gate(x, states.get(self.layer_idx))
        query, key = (self._heads(linear(filtered)) for linear in (self.q_proj, self.k_proj))
        value = self._heads(self.v_proj(x))
        query, key = apply_rotary_pos_emb(query, key, *turn)
        if past is not None:
            key, value = past.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        out, _ = attend(self, query, key, value, mask, dropout=0.0, scaling=self.scaling)
        projected: Tensor = self.o_proj(out.reshape(x.shape))
        return projected

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], -1, self.head_dim).transpose(1, 2)


class YuanMLP(nn.Module):
    def __init__(self, config: TinyYuanConfig) -> None:
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(self.gate_proj(x) * F.silu(self.up_proj(x)))
        return out


class YuanDecoderLayer(nn.Module):
    def __init__(self, config: TinyYuanConfig, layer_idx: int) -> None:
        super().__init__()
        self.self_attn = YuanAttention(config, layer_idx)
        self.mlp = YuanMLP(config)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, mask: Tensor | None, turn: tuple[Tensor, Tensor], past: Any) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), mask, turn, past)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class YuanModel(nn.Module):
    def __init__(self, config: TinyYuanConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([YuanDecoderLayer(config, i) for i in range(config.num_hidden_layers)])
        self.norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)


class TinyYuanForCausalLM(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    config_class = TinyYuanConfig
    _supports_attention_backend = True
    _supports_sdpa = True
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: TinyYuanConfig) -> None:
        super().__init__(config)
        self.model = YuanModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embed_tokens

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def forward(  # noqa: PLR0917 - the signature is transformers'
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **_: Any,
    ) -> Any:
        x = self.model.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        before = 0 if past_key_values is None else past_key_values.get_seq_length()
        if position_ids is None:
            position_ids = torch.arange(before, before + x.shape[1], device=x.device)[None]
        mask = create_causal_mask(self.config, x, attention_mask, past_key_values, position_ids=position_ids)
        turn = self._turn(x, position_ids)
        for layer in self.model.layers:
            x = layer(x, mask, turn, past_key_values)
        return CausalLMOutputWithPast(logits=self.lm_head(self.model.norm(x)), past_key_values=past_key_values)

    def _turn(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        width = self.config.hidden_size // self.config.num_attention_heads
        angles = positions[..., None] / 10000 ** (torch.arange(0, width, 2, device=x.device) / width)
        both = torch.cat([angles, angles], -1)
        return both.cos().to(x.dtype), both.sin().to(x.dtype)
