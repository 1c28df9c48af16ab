"""A reward model from a loaded base to its directory."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any

from datasets import Dataset
from trl import RewardConfig, RewardTrainer

from adapters.manifest import DataRef
from trainer.base_model import Base
from trainer.config.preference import RewardPreference
from trainer.config.schema import TrainConfig
from trainer.export import make_manifest
from trainer.output import result_directory
from trainer.preference.extra import as_config
from trainer.preference.load import load
from trainer.preference.reward_model import RewardModel, save_reward_model, scores_of
from trainer.preference.tokens import PairIds, PreferenceData
from trainer.preference.trainers import OurCheckpoints, padded


class OurRewardTrainer(OurCheckpoints, RewardTrainer):  # type: ignore[misc]
    """Trains a RewardModel on rows that are tokenised already."""

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As trl's; the tokens are counted."""
        if self.model.training:
            self.tokens_seen += int(inputs["attention_mask"].sum())
        return super().compute_loss(model, inputs, *args, **kwargs)


class RewardWork:
    """A reward model on pairs."""

    def __init__(self, config: TrainConfig, preference: RewardPreference, base: Base) -> None:
        self._config, self._preference, self._base = config, preference, base
        self.data: PreferenceData[PairIds] = load(config, base.tokenizer, base.end_ids)

    def refer_to(self, model: Any) -> None:
        """See Work: scores of answers have no reference."""

    def steps_rows(self) -> int:
        """See Work."""
        return len(self.data.train)

    def trainer(self, model: Any, arguments: Any, callbacks: list[Any]) -> OurRewardTrainer:
        """See Work."""
        config = as_config(
            RewardConfig,
            arguments,
            max_length=None,
            disable_dropout=self._preference.disable_dropout,
            center_rewards_coefficient=self._preference.center_rewards or None,
            prediction_loss_only=True,
        )
        return OurRewardTrainer(
            model=RewardModel(model, self._base),
            args=config,
            train_dataset=_table(self.data.train),
            eval_dataset=_table(self.data.validation) if self.data.validation else None,
            processing_class=padded(self._base),
            callbacks=callbacks,
        )

    def figures(self, trainer: Any) -> dict[str, float]:
        """See Work."""
        both = [row.prompt + answer for row in self.data.validation for answer in (row.chosen, row.rejected)]
        if not both:
            return {}
        scores = scores_of(trainer.trained, both, self._base.pad_id, self._config.training.batch_size)
        margins = [chosen - rejected for chosen, rejected in zip(scores[::2], scores[1::2], strict=True)]
        return {"reward_accuracy": fmean(margin > 0 for margin in margins), "reward_margin": fmean(margins)}

    def export(self, trainer: Any, metrics: dict[str, float]) -> Path:
        """See Work."""
        path = Path(self._config.output) / result_directory(self._config)
        data = DataRef(sha256=self.data.sha256, rows=len(self.data.train))
        save_reward_model(trainer.trained, path, make_manifest(self._base, self._config, data, metrics))
        return path


def _table(rows: list[PairIds]) -> Dataset:
    return Dataset.from_list(
        [{"chosen_ids": row.prompt + row.chosen, "rejected_ids": row.prompt + row.rejected} for row in rows]
    )
