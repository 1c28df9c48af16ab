"""Multitask prompt tuning: a shared prompt times a low-rank factor of the task."""

from __future__ import annotations

from dataclasses import replace

import torch

from adapters.base import BaseSpec
from adapters.configs.prompt import MultitaskPromptTuningConfig
from adapters.errors import PackageError, UnsupportedKindError
from adapters.kinds.check import expect_shape, stacks_of
from adapters.kinds.prompt import prompt_embeds
from adapters.names import shown
from adapters.ops import Adapter
from adapters.package import AdapterPackage

_PARTS = ("prompt_embeddings", "prefix_task_cols", "prefix_task_rows")


def compile_multitask(package: AdapterPackage, base: BaseSpec) -> Adapter:
    """Ops of a multitask prompt-tuning package of one task (https://huggingface.co/papers/2303.02861).

    Semantics: the rows before the prompt are ``prompt_embeddings * (prefix_task_cols[0] @ prefix_task_rows[0])``.
    Shape: ``prompt_embeddings`` [num_virtual_tokens, hidden_size], ``prefix_task_cols`` [1, num_virtual_tokens,
    num_ranks], ``prefix_task_rows`` [1, num_ranks, hidden_size].
    """
    config = package.config
    assert isinstance(config, MultitaskPromptTuningConfig)
    for name in (*_PARTS, *package.tensors):
        if name not in package.tensors:
            raise PackageError(f"tensor {shown(name)} is missing")
        if name not in _PARTS:
            raise PackageError(f"tensor {shown(name)} is unknown; this kind consists of {', '.join(_PARTS)}")
    if stacks_of(config, base) != 1:
        raise UnsupportedKindError(
            "multitask prompts for both stacks of an encoder-decoder are not served: peft uses the decoder's in "
            "training and not in generation; train with num_transformer_submodules=1"
        )
    prompt, cols, rows = (package.tensors[name] for name in _PARTS)
    shared = prompt_embeds(prompt, config, base)
    expect_shape("prefix_task_cols", cols, (1, config.num_virtual_tokens, config.num_ranks))
    expect_shape("prefix_task_rows", rows, (1, config.num_ranks, base.hidden_size))
    embeds = shared.embeds * (cols[0].float() @ rows[0].float())
    if not bool(torch.isfinite(embeds).all()):
        raise PackageError("prompt_embeddings times prefix_task_cols and prefix_task_rows is not finite")
    return Adapter(config.KIND, prompt=replace(shared, embeds=embeds))
