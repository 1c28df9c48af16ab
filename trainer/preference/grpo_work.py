"""GRPO from a loaded base to an adapter: the model's own answers, scored by a function."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from datasets import Dataset
from torch import nn
from trl import GRPOConfig, GRPOTrainer

from trainer.base_model import Base
from trainer.config.preference import GrpoPreference
from trainer.config.schema import TrainConfig
from trainer.evaluation.greedy import greedy
from trainer.loop.loss import LabelledHead
from trainer.preference.extra import as_config
from trainer.preference.load import load
from trainer.preference.policy import PolicyModel
from trainer.preference.reward_function import ROW, TrlReward, load_reward
from trainer.preference.tokens import PreferenceData, PromptIds
from trainer.preference.trainers import OurCheckpoints, padded
from trainer.preference.work import AdapterWork

_BATCH = 8  # prompts answered at once for the held-out reward


class OurGRPOTrainer(OurCheckpoints, GRPOTrainer):  # type: ignore[misc]
    """GRPO of a PolicyModel on prompts that are tokenised already: a prompt of trl's is its number."""

    prompt_ids: Sequence[list[int]]

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return [self.prompt_ids[int(prompt)] for prompt in prompts], None, {}

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Any:
        self.tokens_seen += int(inputs["prompt_mask"].sum() + inputs["completion_mask"].sum())
        return super()._compute_loss(model, inputs)


class GrpoWork(AdapterWork):
    """GRPO on prompts."""

    def __init__(self, config: TrainConfig, preference: GrpoPreference, base: Base) -> None:
        self._config, self._preference, self._base = config, preference, base
        self._reward = TrlReward(load_reward(preference.reward))
        self.data: PreferenceData[PromptIds] = load(config, base.tokenizer, base.end_ids)
        self._before: float | None = None

    def refer_to(self, model: Any) -> None:
        """See Work."""
        self._before = self._held_out(model, LabelledHead(model))

    def steps_rows(self) -> int:
        """See Work: answers, of which a batch consists."""
        return len(self.data.train) * self._preference.num_generations

    def trainer(self, model: Any, arguments: Any, callbacks: list[Any]) -> OurGRPOTrainer:
        """See Work."""
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
        trainer = OurGRPOTrainer(
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

    def figures(self, trainer: Any) -> dict[str, float]:
        """See Work: the mean reward of greedy answers to the held-out prompts, before and after."""
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
        return fmean(self._reward.of(texts, [row.row for row in rows]))


class _SwitchedOff(nn.Module):
    """The policy without its adapter: the reference, with no second model in memory."""

    def __init__(self, policy: PolicyModel) -> None:
        super().__init__()
        self._policy = [policy]  # in a list: it is no part of this module

    def forward(self, **inputs: Any) -> Any:
        """As the policy's own."""
        with self._policy[0].model.disable_adapter():
            return self._policy[0](**inputs)
