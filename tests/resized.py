"""Adapters trained on a base whose vocabulary was resized: saved by peft, and answered by it."""

from __future__ import annotations

import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM


def resized(base: Path, vocab_size: int) -> Any:
    """The base with ``vocab_size`` tokens; those that are new start from random rows."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
    if vocab_size != model.config.vocab_size:
        model.resize_token_embeddings(vocab_size)
    return model


def save(base: Path, path: Path, config: Any, vocab_size: int, *, std: float = 0.15, **options: Any) -> Path:
    """Let peft save a random adapter of ``config``, trained on the resized base; returns ``path``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        model = get_peft_model(resized(base, vocab_size), config)
        torch.manual_seed(1)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, mean=float("norm" in name or "ln_" in name), std=std)
        model.save_pretrained(path, **options)
    return path


@lru_cache(maxsize=8)
def _model(base: Path, path: Path, vocab_size: int) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return PeftModel.from_pretrained(resized(base, vocab_size), path).eval()


@torch.no_grad()
def logits(base: Path, path: Path, vocab_size: int, token_ids: list[int]) -> Tensor:
    """PEFT's logits [len(token_ids), vocab_size]."""
    found: Tensor = _model(base, path, vocab_size)(torch.tensor([token_ids])).logits[0]
    return found[-len(token_ids) :]
