"""GRPO from a loaded base to an adapter: the model's own answers, scored by a function of the operator's."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import json
import math
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from types import ModuleType
from typing import Any

from datasets import Dataset
from torch import nn
from trl import GRPOConfig, GRPOTrainer
from typing_extensions import override

from trainer.base_model import Base
from trainer.config.preference import GrpoPreference
from trainer.config.schema import TrainConfig
from trainer.errors import ConfigError, TrainingError
from trainer.loop.greedy import greedy
from trainer.loop.loss import LabelledHead
from trainer.preference.policy import PolicyModel
from trainer.preference.preference_data import PreferenceData, PromptIds, load_preference_data
from trainer.preference.task import AdapterTask
from trainer.preference.trainers import HotswapCheckpoints, as_config, padded

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
        return self.score(completions, [json.loads(text) for text in row])

    def score(self, completions: list[str], rows: list[dict[str, Any]]) -> list[float]:
        """Rewards of ``completions``, each an answer to the row beside it."""
        try:
            given = _items(self._function(completions, rows))
        except TrainingError:
            raise
        except Exception as error:  # the operator's own code may raise anything
            raise TrainingError(f"the reward function raised {type(error).__name__}: {error}") from error
        rewards = [_number(reward) for reward in given]
        if len(rewards) != len(completions):
            raise TrainingError(
                f"the reward function gave {len(rewards)} rewards for {len(completions)} answers; give one for each"
            )
        if not all(math.isfinite(reward) for reward in rewards):
            raise TrainingError("the reward function gave a reward that is not finite")
        return rewards


def _items(given: Any) -> list[Any]:
    """What a reward function returned, as a list. Raises TrainingError."""
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
        if isinstance(given, Coroutine):
            given.close()  # or Python would warn that nobody waits for it
        what = "nothing (None)" if given is None else f"a {type(given).__name__}"
        raise TrainingError(
            f"the reward function returned {what}; it must return a list of numbers, one for each answer"
        )
    return list(given)


def _number(reward: Any) -> float:
    try:
        if not isinstance(reward, str | bytes):
            return float(reward)
    except (TypeError, ValueError, RuntimeError):  # RuntimeError: of a tensor with several numbers
        pass
    raise TrainingError(f"the reward function gave {reward!r:.80} as a reward; it must be a number")


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise FileNotFoundError(path)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_BATCH = 8  # prompts answered at once for the held-out reward


class HotswapGRPOTrainer(HotswapCheckpoints, GRPOTrainer):  # type: ignore[misc]
    """GRPO of a PolicyModel on prompts that are tokenised already: a prompt of trl's is its number."""

    prompt_ids: Sequence[list[int]]

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return [self.prompt_ids[int(prompt)] for prompt in prompts], None, {}

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Any:
        self.tokens_seen += int(inputs["prompt_mask"].sum() + inputs["completion_mask"].sum())
        return super()._compute_loss(model, inputs)


class GrpoTask(AdapterTask):
    """GRPO on prompts."""

    def __init__(self, config: TrainConfig, preference: GrpoPreference, base: Base) -> None:
        self._config, self._preference, self._base = config, preference, base
        self._reward = TrlReward(load_reward(preference.reward))
        self.data: PreferenceData[PromptIds] = load_preference_data(config, base.tokenizer, base.end_ids)
        self._before: float | None = None

    @override
    def compute_reference(self, model: Any) -> None:
        self._before = self._held_out(model, LabelledHead(model))

    @override
    def num_rows(self) -> int:
        """Answers of an epoch, of which a batch consists."""
        return len(self.data.train) * self._preference.num_generations

    @override
    def make_trainer(self, model: Any, arguments: Any, callbacks: list[Any]) -> HotswapGRPOTrainer:
        preference, policy = self._preference, PolicyModel(model, self._base, self._preference.temperature)
        assert policy.generation_config is not None, "a base that generates says how"
        policy.generation_config.eos_token_id = list(self._base.end_ids)
        arguments = copy.copy(arguments)
        arguments.eval_strategy = "no"  # the held-out reward is measured before and after
        config = as_config(
            GRPOConfig,
            arguments,
            beta=0.0,  # else trl loads the base once more
            num_generations=preference.num_generations,
            max_completion_length=preference.max_completion_length,
            temperature=preference.temperature,
            top_p=preference.top_p,
            loss_type=preference.loss_type,
            epsilon=preference.epsilon,
            num_iterations=preference.num_iterations,
            scale_rewards=preference.scale_rewards,
            router_aux_loss_coef=0.0,
        )
        rows = [
            {"prompt": str(i), ROW: json.dumps(row.row, ensure_ascii=False, default=str)}
            for i, row in enumerate(self.data.train)
        ]
        trainer = HotswapGRPOTrainer(
            model=policy,
            reward_funcs=[self._reward],
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=padded(self._base),
            callbacks=callbacks,
        )
        del policy.forward  # trl's head around ours
        trainer.prompt_ids = [row.prompt for row in self.data.train]
        if preference.beta:
            trainer.beta, trainer.ref_model = preference.beta, _SwitchedOff(policy)
        return trainer

    @override
    def evaluate(self, trainer: Any) -> dict[str, float]:
        """The mean reward of greedy answers to the held-out prompts, before and after."""
        if self._before is None:
            return {}
        after = self._held_out(trainer.trained, trainer.model.head)
        assert after is not None
        return {"reward_before": self._before, "reward_after": after}

    def _held_out(self, model: Any, head: LabelledHead) -> float | None:
        rows = self.data.validation
        if not rows:
            return None
        texts: list[str] = []
        for at in range(0, len(rows), _BATCH):
            prompts = [row.prompt for row in rows[at : at + _BATCH]]
            answers = greedy(model, head, self._base, prompts, self._preference.max_completion_length)
            texts += [self._base.tokenizer.decode(ids, skip_special_tokens=True) for ids in answers]
        return fmean(self._reward.score(texts, [row.row for row in rows]))


class _SwitchedOff(nn.Module):
    """The policy without its adapter: the reference, with no second model in memory."""

    def __init__(self, policy: PolicyModel) -> None:
        super().__init__()
        self._policy = [policy]  # in a list: it is no part of this module

    def forward(self, **inputs: Any) -> Any:
        """As the policy's own."""
        with self._policy[0].model.disable_adapter():
            return self._policy[0](**inputs)
