"""DPO and KTO from a loaded base to a trainer, and what the held-out rows say before and after."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, Protocol

from adapters.manifest import DataRef
from trainer.base_model import Base
from trainer.config.methods import FullMethod
from trainer.config.preference import DpoPreference, GrpoPreference, KtoPreference, RewardPreference
from trainer.config.schema import TrainConfig
from trainer.errors import ConfigError
from trainer.export import PACKAGE_DIR, export_adapter
from trainer.full_export import BASE_DIR, export_base
from trainer.loop.loss import LabelledHead
from trainer.preference.figures import judged_figures, pair_figures
from trainer.preference.reference import Scorer, judged_table, pair_table
from trainer.preference.tokens import JudgedIds, PairIds, PreferenceData, Tokens, load_preferences


class Work(Protocol):
    """One kind of preference training of one base."""

    data: PreferenceData[Any]

    def refer_to(self, model: Any) -> None:
        """Let the reference be ``model`` as it is now: ask it for all that will be needed of it."""
        ...

    def steps_rows(self) -> int:
        """Rows of an epoch, from which steps are counted."""
        ...

    def trainer(self, model: Any, arguments: Any, callbacks: list[Any]) -> Any:
        """The trainer of ``model``, the base with an adapter."""
        ...

    def figures(self, trainer: Any) -> dict[str, float]:
        """Scores of the held-out rows by the trained model."""
        ...

    def export(self, trainer: Any, metrics: dict[str, float]) -> Path:
        """Write what was trained into the output directory; returns where it is."""
        ...


def make_work(config: TrainConfig, base: Base) -> Work:
    """The work that ``config.preference`` asks for, its data loaded."""
    preference = config.preference
    if isinstance(preference, DpoPreference):
        return DpoWork(config, preference, base)
    if isinstance(preference, KtoPreference):
        return KtoWork(config, preference, base)
    if isinstance(preference, RewardPreference):
        from trainer.preference.reward_work import RewardWork

        return RewardWork(config, preference, base)
    assert isinstance(preference, GrpoPreference)
    from trainer.preference.grpo_work import GrpoWork

    return GrpoWork(config, preference, base)


class AdapterWork:
    """What ends in an adapter's package."""

    data: PreferenceData[Any]
    _config: TrainConfig
    _base: Base

    def export(self, trainer: Any, metrics: dict[str, float]) -> Path:
        """See Work. Full fine-tuning leaves a base instead."""
        data = DataRef(sha256=self.data.sha256, rows=len(self.data.train))
        if isinstance(self._config.method, FullMethod):
            path = Path(self._config.output) / BASE_DIR
            export_base(trainer.trained, self._base, self._config, path, data=data, metrics=metrics)
            return path
        path = Path(self._config.output) / PACKAGE_DIR
        export_adapter(trainer.trained, self._base, self._config, path, data=data, metrics=metrics)
        return path


class DpoWork(AdapterWork):
    """DPO on pairs."""

    def __init__(self, config: TrainConfig, preference: DpoPreference, base: Base) -> None:
        self._config, self._preference, self._base = config, preference, base
        tokens = Tokens(config.data, preference.columns, base.tokenizer, base.end_ids)
        self.data: PreferenceData[PairIds] = load_preferences(config.data, tokens.pairs, config.training.seed)

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
        tokens = Tokens(config.data, preference.columns, base.tokenizer, base.end_ids)
        self.data: PreferenceData[JudgedIds] = load_preferences(config.data, tokens.judged, config.training.seed)
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
