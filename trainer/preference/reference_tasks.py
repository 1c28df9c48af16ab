"""DPO and KTO, which compare with a reference: from a loaded base to a trainer, and what the held-out rows say.

The implicit reward of an answer is beta times its gain in log-probability over the reference (Rafailov et al. 2023,
section 4).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from typing_extensions import override

from trainer.base_model import Base
from trainer.config.preference import DpoPreference, KtoPreference
from trainer.config.schema import TrainConfig
from trainer.loop.loss import LabelledHead
from trainer.preference.policy import Scorer, judged_table, pair_table
from trainer.preference.preference_data import JudgedIds, PairIds, PreferenceData, check_labels, load_preference_data
from trainer.preference.task import AdapterTask


def pair_metrics(
    before: Sequence[tuple[float, float]], after: Sequence[tuple[float, float]], beta: float
) -> dict[str, float]:
    """Of log-probabilities (chosen, rejected) by the reference and by the model; nothing for no pairs.

    ``preferred_before`` and ``preferred_after``: the share of pairs whose chosen answer is the likelier one.
    ``reward_accuracy``: the share whose chosen answer gained more; ``reward_margin``: by how much reward on average.
    """
    if not before:
        return {}
    margins = [
        beta * ((chosen - chosen_before) - (rejected - rejected_before))
        for (chosen_before, rejected_before), (chosen, rejected) in zip(before, after, strict=True)
    ]
    return {
        "preferred_before": fmean(chosen > rejected for chosen, rejected in before),
        "preferred_after": fmean(chosen > rejected for chosen, rejected in after),
        "reward_accuracy": fmean(margin > 0 for margin in margins),
        "reward_margin": fmean(margins),
    }


def judged_metrics(
    good: Sequence[bool], before: Sequence[float], after: Sequence[float], beta: float
) -> dict[str, float]:
    """Of answers' log-probabilities by the reference and by the model; nothing unless there are good and bad ones.

    ``reward_accuracy``: of all couples of a good and a bad answer, the share where the good one's reward is higher
    (the area under the ROC curve); ``reward_margin``: the difference of the mean rewards.
    """
    rewards = [beta * (now - then) for now, then in zip(after, before, strict=True)]
    goods = [reward for reward, is_good in zip(rewards, good, strict=True) if is_good]
    bads = [reward for reward, is_good in zip(rewards, good, strict=True) if not is_good]
    if not goods or not bads:
        return {}
    return {
        "reward_accuracy": fmean((a > b) + (a == b) / 2 for a in goods for b in bads),
        "reward_margin": fmean(goods) - fmean(bads),
    }


class DpoTask(AdapterTask):
    """DPO on pairs."""

    def __init__(self, config: TrainConfig, preference: DpoPreference, base: Base) -> None:
        self._config, self._preference, self._base = config, preference, base
        self.data: PreferenceData[PairIds] = load_preference_data(config, base.tokenizer, base.end_ids)

    @override
    def compute_reference(self, model: Any) -> None:
        scorer = Scorer(model, LabelledHead(model), self._base, self._config.training.batch_size)
        self._train = pair_table(self.data.train, scorer, self._preference.ld_alpha)
        self._validation = pair_table(self.data.validation, scorer, self._preference.ld_alpha)

    @override
    def num_rows(self) -> int:
        return len(self.data.train)

    @override
    def make_trainer(self, model: Any, arguments: Any, callbacks: list[Any]) -> Any:
        from trainer.preference.trainers import TrainerInputs, dpo_trainer

        inputs = TrainerInputs(model, self._base, arguments, self._train, self._validation, callbacks)
        return dpo_trainer(inputs, self._preference)

    @override
    def evaluate(self, trainer: Any) -> dict[str, float]:
        scorer = Scorer(trainer.trained, trainer.model.head, self._base, self._config.training.batch_size)
        after = scorer.pairs(self.data.validation, self._preference.ld_alpha)
        before = [(row["ref_chosen_logps"], row["ref_rejected_logps"]) for row in self._validation]
        return pair_metrics(before, after, self._preference.beta)


class KtoTask(AdapterTask):
    """KTO on judged answers."""

    def __init__(self, config: TrainConfig, preference: KtoPreference, base: Base) -> None:
        self._config, self._preference, self._base = config, preference, base
        self.data: PreferenceData[JudgedIds] = load_preference_data(config, base.tokenizer, base.end_ids)
        check_labels(config, self.data)
        random.Random(config.training.seed).shuffle(self.data.train)  # trl takes the rows as they come

    @override
    def compute_reference(self, model: Any) -> None:
        batch = self._config.training.batch_size
        size = batch if self._preference.loss_type == "kto" else None
        scorer = Scorer(model, LabelledHead(model), self._base, batch)
        self._train = judged_table(self.data.train, scorer, kl_batch=size)
        self._validation = judged_table(self.data.validation, scorer, kl_batch=size)

    @override
    def num_rows(self) -> int:
        return len(self.data.train)

    @override
    def make_trainer(self, model: Any, arguments: Any, callbacks: list[Any]) -> Any:
        from trainer.preference.trainers import TrainerInputs, kto_trainer

        inputs = TrainerInputs(model, self._base, arguments, self._train, self._validation, callbacks)
        return kto_trainer(inputs, self._preference)

    @override
    def evaluate(self, trainer: Any) -> dict[str, float]:
        scorer = Scorer(trainer.trained, trainer.model.head, self._base, self._config.training.batch_size)
        after = scorer.answers([(row.prompt, row.completion) for row in self.data.validation])
        before = [row["ref_logps"] for row in self._validation]
        return judged_metrics([row.good for row in self.data.validation], before, after, self._preference.beta)
