"""Whether the rows of a run fit the positions that its base has."""

from __future__ import annotations

from typing import Any

from trainer.config.schema import TrainConfig
from trainer.errors import ConfigError

_SHORTEST = 8  # tokens that data.max_length allows at least


def check_context(model_config: Any, config: TrainConfig, longest: int, *, answer: int = 0) -> None:
    """Raise ConfigError when ``longest`` tokens and the method's virtual ones are more than the base has positions.

    ``answer``: how many tokens the model may write behind them. A base with a table of positions would fail on such a
    row, and one with rotary positions learn what no server of it answers. Bases whose configuration names no positions
    (BLOOM, T5) take any row.
    """
    positions = getattr(model_config.get_text_config(), "max_position_embeddings", None)
    virtual = getattr(config.method, "tokens", 0)
    if positions is None or longest + virtual + answer <= positions:
        return
    beside = f" beside the method's {virtual} virtual tokens" if virtual else ""
    behind = f" and {answer} of preference.max_completion_length behind them" if answer else ""
    room = positions - virtual - answer
    advice = (
        f"set data.max_length to {room} at most"
        if room >= _SHORTEST
        else "lower what is beside it, or take a base with more"
    )
    raise ConfigError(
        f"data.max_length: the longest row has {longest} tokens{beside}{behind}, and the base has {positions} "
        f"positions; {advice}"
    )
