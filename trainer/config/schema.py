"""The typed configuration of one training run. Knows neither files nor the command line (``trainer.config.file``)."""

from __future__ import annotations

import msgspec

from adapters.base import DEFAULT_BASE
from trainer.config.data import DataConfig
from trainer.config.methods import LoraMethod, Method
from trainer.config.preference import Preference
from trainer.config.training import TrainingConfig


class TrainConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One training run: it is written beside the results and reproduces them.

    ``added_tokens`` are texts that become one token each, with trained embeddings; those that the base has already are
    trained as they are. None: those of data.recipe. ``start_from`` is the package of an adapter of the same method, or
    the checkpoint of a run, with which training begins; None: a fresh adapter.
    """

    output: str
    data: DataConfig
    base: str = DEFAULT_BASE
    method: Method = msgspec.field(default_factory=LoraMethod)
    training: TrainingConfig = msgspec.field(default_factory=TrainingConfig)
    preference: Preference | None = None
    added_tokens: list[str] | None = None
    start_from: str | None = None
