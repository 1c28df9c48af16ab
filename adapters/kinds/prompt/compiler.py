"""What stands before the prompt: embedding rows (prompt tuning, P-Tuning v1, context-aware and multitask prompt
tuning), or keys and values (prefix tuning, cartridges).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from adapters.base_spec import BaseSpec
from adapters.errors import BaseMismatchError, PackageError, UnsupportedKindError
from adapters.kinds.prompt.config import (
    CartridgeConfig,
    MultitaskPromptTuningConfig,
    PrefixTuningConfig,
    PromptLearningConfig,
)
from adapters.kinds.saved_adapter import OTHER_BASE, SavedAdapter, expect_shape
from adapters.ops import Adapter, PrefixKV, PromptEmbeds
from adapters.quoting import quote


def stacks_of(config: PromptLearningConfig, base: BaseSpec) -> int:
    """How many stacks peft made virtual tokens for: both of an encoder-decoder unless told otherwise.

    Raises BaseMismatchError when the base has fewer.
    """
    stacks = config.num_transformer_submodules or (2 if base.is_encoder_decoder else 1)
    if stacks > 1 and not base.is_encoder_decoder:
        raise BaseMismatchError(
            f"the adapter was made for an encoder-decoder (num_transformer_submodules is {stacks}), and this server "
            f"serves {quote(base.name)}, a decoder-only model: serve that base, or train the adapter on this one"
        )
    return stacks


def only_prompt_embeddings(tensors: Mapping[str, Tensor]) -> Tensor:
    """The one tensor of a kind that stands before the prompt. PackageError when it is missing or has company."""
    for name in tensors:
        if name != "prompt_embeddings":
            raise PackageError(f"tensor {quote(name)} is unknown; this kind consists of 'prompt_embeddings' alone")
    if not tensors:
        raise PackageError("tensor 'prompt_embeddings' is missing")
    return tensors["prompt_embeddings"]


def expect_base_count(what: str, found: int | None, expected: int, base: BaseSpec) -> None:
    """BaseMismatchError when a count that peft recorded of the adapter's base differs from this base's."""
    if found is not None and found != expected:
        raise BaseMismatchError(
            f"the adapter was made for a base with {what} {found}; this server serves {quote(base.name)}, "
            f"whose {what} is {expected}: serve that base, or train the adapter on this one"
        )


def compile_prompt(package: SavedAdapter, base: BaseSpec) -> Adapter:
    """Ops of a package that is nothing but embedding rows, however they were trained.

    Prompt tuning (https://huggingface.co/papers/2104.08691), P-Tuning (2103.10385; the encoder is applied at save) and
    CPT (2410.17222; the projected change is added to the context's embeddings at save).

    Shape: ``prompt_embeddings`` [num_virtual_tokens, hidden_size].
    """
    config = package.config
    assert isinstance(config, PromptLearningConfig)
    return Adapter(config.KIND, prompt=prompt_embeds(only_prompt_embeddings(package.tensors), config, base))


def prompt_embeds(saved: Tensor, config: PromptLearningConfig, base: BaseSpec) -> PromptEmbeds:
    """The tensor ``prompt_embeddings``, checked. Raises BaseMismatchError and PackageError.

    For an encoder-decoder peft saves as many rows for the decoder after those for the encoder, and never uses them.
    """
    expect_base_count("hidden size", config.token_dim, base.hidden_size, base)
    rows = config.num_virtual_tokens * stacks_of(config, base)
    expect_shape("prompt_embeddings", saved, (rows, base.hidden_size), OTHER_BASE)
    return PromptEmbeds(saved[: config.num_virtual_tokens].float().clone())


_MULTITASK_PARTS = ("prompt_embeddings", "prefix_task_cols", "prefix_task_rows")


def compile_multitask(package: SavedAdapter, base: BaseSpec) -> Adapter:
    """Ops of a multitask prompt-tuning package of one task (https://huggingface.co/papers/2303.02861).

    Semantics: the rows before the prompt are ``prompt_embeddings * (prefix_task_cols[0] @ prefix_task_rows[0])``.
    Shape: ``prompt_embeddings`` [num_virtual_tokens, hidden_size], ``prefix_task_cols`` [1, num_virtual_tokens,
    num_ranks], ``prefix_task_rows`` [1, num_ranks, hidden_size].
    """
    config = package.config
    assert isinstance(config, MultitaskPromptTuningConfig)
    for name in (*_MULTITASK_PARTS, *package.tensors):
        if name not in package.tensors:
            raise PackageError(f"tensor {quote(name)} is missing")
        if name not in _MULTITASK_PARTS:
            raise PackageError(f"tensor {quote(name)} is unknown; this kind consists of {', '.join(_MULTITASK_PARTS)}")
    if stacks_of(config, base) != 1:
        raise UnsupportedKindError(
            "multitask prompts for both stacks of an encoder-decoder are not served: peft uses the decoder's in "
            "training and not in generation; train with num_transformer_submodules=1"
        )
    prompt, cols, rows = (package.tensors[name] for name in _MULTITASK_PARTS)
    shared = prompt_embeds(prompt, config, base)
    expect_shape("prefix_task_cols", cols, (1, config.num_virtual_tokens, config.num_ranks))
    expect_shape("prefix_task_rows", rows, (1, config.num_ranks, base.hidden_size))
    embeds = shared.embeds * (cols[0].float() @ rows[0].float())
    if not bool(torch.isfinite(embeds).all()):
        raise PackageError("prompt_embeddings times prefix_task_cols and prefix_task_rows is not finite")
    return Adapter(config.KIND, prompt=replace(shared, embeds=embeds))


def compile_prefix(package: SavedAdapter, base: BaseSpec) -> Adapter:
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
            f"the base {quote(base.name)} has keys and values of different sizes, which the format of prefix adapters "
            "has no place for; train another kind for it"
        )
    saved = only_prompt_embeddings(package.tensors)
    layers = _saved_layers(config, base)
    expect_base_count("number of key-value heads", config.num_attention_heads, heads, base)
    expect_base_count("key-value size (heads x head size)", config.token_dim, heads * dim, base)
    expect_shape("prompt_embeddings", saved, (config.num_virtual_tokens, layers * 2 * heads * dim), OTHER_BASE)
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
