"""Embedding rows before the prompt: prompt tuning, P-Tuning v1 and context-aware prompt tuning."""

from __future__ import annotations

from torch import Tensor

from adapters.base import BaseSpec
from adapters.configs.prompt import PromptLearningConfig
from adapters.kinds.check import expect_base_count, expect_shape, only_prompt_embeddings, stacks_of
from adapters.ops import Adapter, PromptEmbeds
from adapters.package import AdapterPackage


def compile_prompt(package: AdapterPackage, base: BaseSpec) -> Adapter:
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
    hint = "the shape suggests that the adapter was made for another base"
    rows = config.num_virtual_tokens * stacks_of(config, base)
    expect_shape("prompt_embeddings", saved, (rows, base.hidden_size), hint)
    return PromptEmbeds(saved[: config.num_virtual_tokens].float().clone())
