"""Prefix tuning (and P-Tuning v2, whose projection peft flattens at save) and Cartridges: KV before the prompt."""

from __future__ import annotations

from adapters.base import BaseSpec
from adapters.configs.prompt import CartridgeConfig, PrefixTuningConfig
from adapters.kinds.check import expect_base_count, expect_shape, only_prompt_embeddings
from adapters.ops import Adapter, PrefixKV
from adapters.package import AdapterPackage


def compile_prefix(package: AdapterPackage, base: BaseSpec) -> Adapter:
    """Ops of a prefix or cartridge package (https://huggingface.co/papers/2101.00190, 2506.06266).

    Semantics: row ``p`` of ``prompt_embeddings`` is ``[layer][key, value][kv_head][head_dim]`` of virtual token ``p``.
    Shape: ``prompt_embeddings`` [num_virtual_tokens, num_layers * 2 * num_kv_heads * head_dim].
    """
    config = package.config
    assert isinstance(config, PrefixTuningConfig | CartridgeConfig)
    layers, heads, dim = base.num_layers, base.num_kv_heads, base.head_dim
    saved = only_prompt_embeddings(package.tensors)
    expect_base_count("number of layers", config.num_layers, layers, base)
    expect_base_count("number of key-value heads", config.num_attention_heads, heads, base)
    expect_base_count("key-value size (heads x head size)", config.token_dim, heads * dim, base)
    hint = "the shape suggests that the adapter was made for another base"
    expect_shape("prompt_embeddings", saved, (config.num_virtual_tokens, layers * 2 * heads * dim), hint)
    stacked = saved.float().view(config.num_virtual_tokens, layers, 2, heads, dim)
    keys, values = stacked.permute(2, 1, 0, 3, 4).contiguous()
    return Adapter(config.KIND, prefix=PrefixKV(keys, values))
