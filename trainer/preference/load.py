"""The rows of a configuration with ``preference``, by its kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from trainer.config.preference import GrpoPreference, KtoPreference, PreferenceColumns
from trainer.config.schema import TrainConfig
from trainer.preference.tokens import PreferenceData, Tokens, load_preferences

Encode = Callable[[str, dict[str, Any]], list[Any]]


def encoder_of(config: TrainConfig, tokenizer: Any, end_ids: Sequence[int]) -> Encode:
    """What makes token ids of a row of ``config``, as its training does."""
    preference = config.preference
    assert preference is not None
    columns = PreferenceColumns() if isinstance(preference, GrpoPreference) else preference.columns
    tokens = Tokens(config.data, columns, tokenizer, end_ids)
    if isinstance(preference, GrpoPreference):
        return tokens.prompts
    return tokens.judged if isinstance(preference, KtoPreference) else tokens.pairs


def load(config: TrainConfig, tokenizer: Any, end_ids: Sequence[int]) -> PreferenceData[Any]:
    """The rows of ``config`` as its training reads and splits them. Raises DataError."""
    return load_preferences(config.data, encoder_of(config, tokenizer, end_ids), config.training.seed)
