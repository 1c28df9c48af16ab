"""What the tests of plans share: configurations without files, and bases read from a folder's configuration."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoConfig

from bases.tokenizer import load_tokenizer
from trainer.config.loading import load_config
from trainer.config.schema import TrainConfig
from trainer.plan.meta import Blueprint


def shape_config(*settings: str) -> TrainConfig:
    """A configuration of which output and data are never looked at."""
    return load_config(None, ["output=plan", "data.path=plan", *settings], {})


def blueprint_of(base: Path, dtype: torch.dtype = torch.float32) -> Blueprint:
    """The base in the folder ``base``, without its weights."""
    return Blueprint(base.name, AutoConfig.from_pretrained(base), dtype, load_tokenizer(base))
