"""trl, which is an extra, and its configurations from our arguments."""

from __future__ import annotations

import dataclasses
import importlib.util
from typing import Any

from transformers import TrainingArguments

from trainer.errors import ConfigError


def require_trl(kind: str) -> None:
    """Raise ConfigError when trl is not installed."""
    if importlib.util.find_spec("trl") is None:
        raise ConfigError(f"preference.type: {kind} needs trl, which is an extra: pip install 'hotswap[preference]'")


def as_config(kind: type[Any], arguments: TrainingArguments, **settings: Any) -> Any:
    """``arguments`` as the configuration class ``kind`` of trl, with ``settings`` of its own.

    Every one of transformers' arguments is handed on as it stands: trl's own defaults turn on bfloat16 and gradient
    checkpointing wherever it runs.
    """
    names = [field.name for field in dataclasses.fields(TrainingArguments) if field.init]
    config = kind(**{name: getattr(arguments, name) for name in names} | settings)
    config._n_gpu = min(arguments.n_gpu, 1)  # as make_arguments
    return config
