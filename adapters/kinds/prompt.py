"""Prompt tuning: embedding rows before the prompt."""

from __future__ import annotations

from adapters.base import BaseSpec
from adapters.configs.prompt import PromptTuningConfig
from adapters.kinds.check import expect_base_count, expect_shape, only_prompt_embeddings
from adapters.ops import Adapter, PromptEmbeds
from adapters.package import AdapterPackage


def compile_prompt(package: AdapterPackage, base: BaseSpec) -> Adapter:
    """Ops of a prompt-tuning package. Shape: ``prompt_embeddings`` [num_virtual_tokens, hidden_size]."""
    config = package.config
    assert isinstance(config, PromptTuningConfig)
    saved = only_prompt_embeddings(package.tensors)
    expect_base_count("hidden size", config.token_dim, base.hidden_size, base)
    hint = "the shape suggests that the adapter was made for another base"
    expect_shape("prompt_embeddings", saved, (config.num_virtual_tokens, base.hidden_size), hint)
    return Adapter(config.KIND, prompt=PromptEmbeds(saved.float()))
