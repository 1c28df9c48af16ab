"""Whether the rows of a run fit the positions that its base has."""

from __future__ import annotations

from typing import Any

from trainer.config.schema import TrainConfig
from trainer.errors import ConfigError


def check_context(model_config: Any, config: TrainConfig, longest: int) -> None:
    """Raise ConfigError when ``longest`` tokens and the method's virtual ones are more than the base has positions.

    A base with a table of positions would fail on such a row, and one with rotary positions learn what no server of it
    answers. Bases without a limit of their own (ALiBi, T5) take any row.
    """
    positions = getattr(model_config.get_text_config(), "max_position_embeddings", None)
    virtual = getattr(config.method, "tokens", 0)
    if positions is None or longest + virtual <= positions:
        return
    beside = f" beside the method's {virtual} virtual tokens" if virtual else ""
    raise ConfigError(
        f"data.max_length: the longest row has {longest} tokens{beside}, and the base has {positions} positions; "
        f"set it to {positions - virtual} at most"
    )
