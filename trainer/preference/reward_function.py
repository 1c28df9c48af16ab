"""Loads the function that scores answers, from what the run's own configuration names."""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from trainer.errors import ConfigError, TrainingError

RewardFunction = Callable[[list[str], list[dict[str, Any]]], Sequence[float]]
ROW = "row"  # the column of trl's data set that holds a row as JSON


def load_reward(spec: str) -> RewardFunction:
    """The function of ``module:function`` or ``file.py:function``. ConfigError when it cannot be had."""
    source, _, name = spec.rpartition(":")
    try:
        module = _from_file(Path(source)) if source.endswith(".py") else importlib.import_module(source)
    except FileNotFoundError as error:
        raise ConfigError(f"preference.reward: there is no file {source}") from error
    except Exception as error:  # the operator's own code may raise anything
        raise ConfigError(f"preference.reward: {source} cannot be imported: {type(error).__name__}: {error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise ConfigError(f"preference.reward: {source} has no function {name!r}")
    found: RewardFunction = function
    return found


class TrlReward:
    """``function`` as trl calls it: with columns by name, and one reward a completion."""

    def __init__(self, function: RewardFunction) -> None:
        self._function = function
        self.__name__ = str(getattr(function, "__name__", "reward"))

    def __call__(self, completions: list[str], row: list[str], **_: Any) -> list[float]:
        """Rewards [completions]. Raises TrainingError for what the function gets wrong."""
        return self.of(completions, [json.loads(text) for text in row])

    def of(self, completions: list[str], rows: list[dict[str, Any]]) -> list[float]:
        """Rewards of ``completions``, each an answer to the row beside it."""
        try:
            rewards = [float(reward) for reward in self._function(completions, rows)]
        except Exception as error:  # the operator's own code may raise anything
            raise TrainingError(f"the reward function raised {type(error).__name__}: {error}") from error
        if len(rewards) != len(completions):
            raise TrainingError(f"the reward function gave {len(rewards)} rewards for {len(completions)} answers")
        if not all(math.isfinite(reward) for reward in rewards):
            raise TrainingError("the reward function gave a reward that is not finite")
        return rewards


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise FileNotFoundError(path)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
