"""Prefix tuning (and P-Tuning v2, whose projection peft flattens at save) and Cartridges: KV before the prompt."""

from __future__ import annotations

from adapters.base import BaseSpec
from adapters.configs.prompt import CartridgeConfig, PrefixTuningConfig, PromptLearningConfig
from adapters.errors import UnsupportedKindError
from adapters.kinds.check import expect_base_count, expect_shape, only_prompt_embeddings, stacks_of
from adapters.names import shown
from adapters.ops import Adapter, PrefixKV
from adapters.package import AdapterPackage


def compile_prefix(package: AdapterPackage, base: BaseSpec) -> Adapter:
    """Ops of a prefix or cartridge package (https://huggingface.co/papers/2101.00190, 2506.06266).

    Semantics: row ``p`` of ``prompt_embeddings`` is ``[layer][key, value][kv_head][head_dim]`` of virtual token ``p``.
    On an encoder-decoder it stands before the decoder's tokens. There peft repeats the saved layers once and cuts the
    row of all keys and values in fours, of which it keeps the first two: layer ``i`` gets saved layer ``2 i mod
    num_layers``.
    Shape: ``prompt_embeddings`` [num_virtual_tokens, num_layers * 2 * num_kv_heads * head_dim].
    """
    config = package.config
    assert isinstance(config, PrefixTuningConfig | CartridgeConfig)
    heads, dim = base.num_kv_heads, base.head_dim
    if not dim:
        raise UnsupportedKindError(
            f"the base {shown(base.name)} has keys and values of different sizes, which the format of prefix adapters "
            "has no place for; train another kind for it"
        )
    saved = only_prompt_embeddings(package.tensors)
    layers = _saved_layers(config, base)
    expect_base_count("number of key-value heads", config.num_attention_heads, heads, base)
    expect_base_count("key-value size (heads x head size)", config.token_dim, heads * dim, base)
    hint = "the shape suggests that the adapter was made for another base"
    expect_shape("prompt_embeddings", saved, (config.num_virtual_tokens, layers * 2 * heads * dim), hint)
    stacked = saved.float().view(config.num_virtual_tokens, layers, 2, heads, dim)
    if base.is_encoder_decoder:
        stacked = stacked[:, [2 * layer % layers for layer in range(base.num_layers)]]
    keys, values = stacked.permute(2, 1, 0, 3, 4).contiguous()
    return Adapter(config.KIND, prefix=PrefixKV(keys, values))


def _saved_layers(config: PromptLearningConfig, base: BaseSpec) -> int:
    """How many layers the package holds. peft counts the encoder's, for the decoder alone has a prefix."""
    if not base.is_encoder_decoder:
        stacks_of(config, base)
        expect_base_count("number of layers", config.num_layers, base.num_layers, base)
        return base.num_layers
    if stacks_of(config, base) != 2:
        raise UnsupportedKindError(
            "prefixes of an encoder-decoder with num_transformer_submodules 1 are not served: peft would mix the "
            "prefix into the cross-attention; leave that setting out when training"
        )
    layers = base.num_layers if config.num_layers is None else config.num_layers
    if layers < base.num_layers:
        expect_base_count("number of layers", layers, base.num_layers, base)
    return layers
