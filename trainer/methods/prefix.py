"""Prefix tuning (Li and Liang 2021) and P-Tuning v2: trained keys and values before the prompt in every layer.

peft hands them to the model as a cache. Layers that are recomputed for gradient checkpointing take no cache, so here
attention itself puts them before its keys and values. The package is peft's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface
from typing_extensions import override

from trainer.base_model import Base
from trainer.config.methods import PrefixMethod
from trainer.errors import ConfigError, first_line
from trainer.methods.own_model import ENCODED, OwnModel, PrefixShape, task_of

NAME = "hotswap_prefix"
INITIAL_STD = 0.02


class _Current:
    """The prefix that attention puts before its keys: [layers, 2, heads, tokens, head_dim]. One thread trains."""

    prefix: Tensor | None = None
    seen: ClassVar[set[int]] = set()  # layers that have asked for it


class PrefixModel(OwnModel):
    """A base whose attention sees trained keys and values first; positions start behind them, as in peft."""

    def __init__(self, base: Base, method: PrefixMethod, shape: PrefixShape) -> None:
        width = shape[1] * shape[2]
        config = {
            "peft_type": "PREFIX_TUNING",
            "task_type": task_of(base),
            "base_model_name_or_path": base.name,
            "inference_mode": True,
            "num_virtual_tokens": method.tokens,
            "num_transformer_submodules": 2 if base.is_encoder_decoder else 1,
            "num_layers": shape[0],
            "num_attention_heads": shape[1],
            "token_dim": width,
        }
        super().__init__(base.model, config)
        self._shape, self.tokens = shape, method.tokens
        self.encoder = _encoder(method, width, shape[0] * 2 * width).to(base.model.device)

    def prefix(self) -> Tensor:
        """Keys and values, [layers, 2, heads, tokens, head_dim]."""
        return self._rows().view(self.tokens, self._shape[0], 2, *self._shape[1:]).permute(1, 2, 3, 0, 4)

    def forward(self, **inputs: Any) -> Any:
        """The base's answer with the prefix before ``input_ids`` [batch, length], padded on the right."""
        input_ids: Tensor = inputs["input_ids"]
        inputs.pop("attention_mask", None)  # padding stands behind everything that counts
        positions = torch.arange(self.tokens, self.tokens + input_ids.shape[1], device=input_ids.device)
        _Current.prefix = self.prefix()
        return self.base_model(**inputs, position_ids=positions.expand_as(input_ids))

    @override
    def adapter_tensors(self) -> dict[str, Tensor]:
        """The projection's output, as peft saves it."""
        with torch.no_grad():
            return {"prompt_embeddings": self._rows()}

    @override
    def load_adapter_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Without a projection: none can be told from what it has made."""
        if not isinstance(self.encoder, nn.Embedding):
            raise ConfigError(ENCODED)
        with torch.no_grad():
            self.encoder.weight.copy_(tensors["prompt_embeddings"])

    def _rows(self) -> Tensor:
        """Shape: [tokens, layers * 2 * heads * head_dim]."""
        rows: Tensor = self.encoder(torch.arange(self.tokens, device=self.device))
        return rows


def apply_prefix(base: Base, method: PrefixMethod) -> PrefixModel:
    """Prefix tuning, with or without a projection. ConfigError when the base's attention cannot be reached."""
    try:
        model = PrefixModel(base, method, configured_shape(base.model.config))
        base.model.set_attn_implementation(NAME)
        _Current.seen = set()
        with torch.no_grad():
            model(input_ids=torch.zeros(1, 2, dtype=torch.long, device=model.device), use_cache=False)
    except (ValueError, AttributeError, TypeError, RuntimeError) as error:
        raise ConfigError(f"method: prefix tuning does not fit this base: {first_line(error)}") from error
    if len(_Current.seen) != model.adapter_config["num_layers"]:
        raise ConfigError(
            f"method: prefix tuning needs attention through transformers' AttentionInterface in every layer, which "
            f"{base.model.config.model_type} does not have; use another method"
        )
    return model


def prefix_attention(  # noqa: PLR0917 - the signature is transformers'
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Causal attention behind the current prefix.

    Shape: ``query`` [B, Hq, T, D]; ``key``, ``value`` [B, Hkv, T, D]; returns [B, T, Hq, D].
    """
    layer: int = module.layer_idx  # type: ignore[assignment]
    assert _Current.prefix is not None, "a prefix base runs inside of PrefixModel only"
    _Current.seen.add(layer)
    before = _Current.prefix[layer].to(key.dtype)[:, None].expand(2, key.shape[0], -1, -1, -1)
    key, value = torch.cat([before[0], key], 2), torch.cat([before[1], value], 2)
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    positions = torch.arange(key.shape[2], device=key.device)
    behind = positions[-query.shape[2] :, None] - positions
    seen = behind >= 0 if sliding_window is None else (behind >= 0) & (behind < sliding_window)
    if options.get("softcap") is None and options.get("s_aux") is None:
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=scaling)
    else:
        out = _explicit(query, key, value, seen, scaling, options.get("softcap"), options.get("s_aux"))
    return out.transpose(1, 2), None


def _explicit(  # noqa: PLR0917 - attention's own arguments
    query: Tensor,
    key: Tensor,
    value: Tensor,
    seen: Tensor,
    scaling: float | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Attention written out, for what scaled_dot_product_attention has no argument for."""
    logits = (query @ key.transpose(-1, -2)).float() * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    logits = logits.masked_fill(~seen, float("-inf"))
    if sinks is not None:
        logits = torch.cat([logits, sinks.float().view(1, -1, 1, 1).expand(*logits.shape[:-1], 1)], -1)
    weights = logits.softmax(-1)[..., : key.shape[2]]
    return weights.to(value.dtype) @ value


def _encoder(method: PrefixMethod, width: int, outputs: int) -> nn.Module:
    """What makes the prefix from token numbers, beginning close to zero as transformers begins its own layers.

    Embeddings of unit variance, as torch begins them, diverge: behind them one step of Adam moves keys and values by
    more than their size.
    """
    encoder: nn.Module
    if method.projection:
        hidden = method.projection_hidden_size
        layers = (nn.Linear(width, hidden), nn.Tanh(), nn.Linear(hidden, outputs))
        encoder = nn.Sequential(nn.Embedding(method.tokens, width), *layers)
    else:
        encoder = nn.Embedding(method.tokens, outputs)
    for module in encoder.modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=INITIAL_STD)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
    return encoder


def configured_shape(config: Any) -> PrefixShape:
    """(layers, KV heads, head size) of the base."""
    config = config.get_text_config()
    heads = int(config.num_attention_heads)
    kv_heads = int(getattr(config, "num_key_value_heads", None) or heads)
    head_dim = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    return int(config.num_hidden_layers), kv_heads, head_dim


AttentionInterface.register(NAME, prefix_attention)
