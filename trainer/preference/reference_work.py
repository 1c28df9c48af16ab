"""DPO and KTO, which compare with a reference: from a loaded base to a trainer, and what the held-out rows say."""

from __future__ import annotations

import random
from typing import Any

from trainer.base_model import Base
from trainer.config.preference import DpoPreference, KtoPreference
from trainer.config.schema import TrainConfig
from trainer.errors import ConfigError
from trainer.loop.loss import LabelledHead
from trainer.preference.figures import judged_figures, pair_figures
from trainer.preference.load import load
from trainer.preference.reference import Scorer, judged_table, pair_table
from trainer.preference.tokens import JudgedIds, PairIds, PreferenceData
from trainer.preference.work import AdapterWork


class DpoWork(AdapterWork):
    """DPO on pairs."""

    def __init__(self, config: TrainConfig, preference: DpoPreference, base: Base) -> None:
        self._config, self._preference, self._base = config, preference, base
        self.data: PreferenceData[PairIds] = load(config, base.tokenizer, base.end_ids)

    def refer_to(self, model: Any) -> None:
        """See Work."""
        scorer = Scorer(model, LabelledHead(model), self._base, self._config.training.batch_size)
        self._train = pair_table(self.data.train, scorer, self._preference.ld_alpha)
        self._validation = pair_table(self.data.validation, scorer, self._preference.ld_alpha)

    def steps_rows(self) -> int:
        """See Work."""
        return len(self.data.train)

    def trainer(self, model: Any, arguments: Any, callbacks: list[Any]) -> Any:
        """See Work."""
        from trainer.preference.trainers import Parts, dpo_trainer

        parts = Parts(model, self._base, arguments, self._train, self._validation, callbacks)
        return dpo_trainer(parts, self._preference)

    def figures(self, trainer: Any) -> dict[str, float]:
        """See Work."""
        scorer = Scorer(trainer.trained, trainer.model.head, self._base, self._config.training.batch_size)
        after = scorer.pairs(self.data.validation, self._preference.ld_alpha)
        before = [(row["ref_chosen_logps"], row["ref_rejected_logps"]) for row in self._validation]
        return pair_figures(before, after, self._preference.beta)


class KtoWork(AdapterWork):
    """KTO on judged answers."""

    def __init__(self, config: TrainConfig, preference: KtoPreference, base: Base) -> None:
        self._config, self._preference, self._base = config, preference, base
        self.data: PreferenceData[JudgedIds] = load(config, base.tokenizer, base.end_ids)
        if len({row.good for row in self.data.train}) < 2:
            raise ConfigError("data.path: kto needs both good and bad answers; all labels are the same")
        random.Random(config.training.seed).shuffle(self.data.train)  # trl takes the rows as they come

    def refer_to(self, model: Any) -> None:
        """See Work."""
        batch = self._config.training.batch_size
        size = batch if self._preference.loss_type == "kto" else None
        scorer = Scorer(model, LabelledHead(model), self._base, batch)
        self._train = judged_table(self.data.train, scorer, kl_batch=size)
        self._validation = judged_table(self.data.validation, scorer, kl_batch=size)

    def steps_rows(self) -> int:
        """See Work."""
        return len(self.data.train)

    def trainer(self, model: Any, arguments: Any, callbacks: list[Any]) -> Any:
        """See Work."""
        from trainer.preference.trainers import Parts, kto_trainer

        parts = Parts(model, self._base, arguments, self._train, self._validation, callbacks)
        return kto_trainer(parts, self._preference)

    def figures(self, trainer: Any) -> dict[str, float]:
        """See Work."""
        scorer = Scorer(trainer.trained, trainer.model.head, self._base, self._config.training.batch_size)
        after = scorer.answers([(row.prompt, row.completion) for row in self.data.validation])
        before = [row["ref_logps"] for row in self._validation]
        return judged_figures([row.good for row in self.data.validation], before, after, self._preference.beta)
