"""What the tests of plans share: configurations without files, bases read from a folder's configuration, peaks."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile
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


def most_allocated(train: Callable[[], object]) -> int:
    """The most bytes that ``train`` held at once, by torch's own account."""
    gc.collect()  # what earlier tests have left would be freed within, and subtracted
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        train()
    live = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak
