"""A reward model, a LoRA with a head that scores answers: trained on pairs by trl, saved as peft saves classifiers.

``OUTPUT/reward_model`` loads with transformers' AutoModelForSequenceClassification (num_labels 1) and peft. It gives
scores, not text: the server answers with them at /v1/classify.
"""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any

import msgspec
import torch
from datasets import Dataset
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutputWithPast
from trl import RewardConfig, RewardTrainer
from typing_extensions import override

from adapters.package.manifest import DataRef, encode_manifest
from trainer.base_model import Base
from trainer.config.preference import RewardPreference
from trainer.config.schema import TrainConfig
from trainer.errors import TrainingError
from trainer.export.result import make_manifest
from trainer.files import replacing
from trainer.loop.output import result_directory
from trainer.methods import adapter_of
from trainer.preference.policy import WrappedModel
from trainer.preference.preference_data import PairIds, PreferenceData, load_preference_data
from trainer.preference.task import PreferenceTask
from trainer.preference.trainers import HotswapCheckpoints, as_config, padded

HEAD = "score"
_CONFIG, _WEIGHTS, _MANIFEST = "adapter_config.json", "adapter_model.safetensors", "hotswap.json"


class RewardModel(WrappedModel):
    """Scores of whole conversations: ``score(hidden state of the last token)``, as transformers' classifiers do."""

    def __init__(self, model: Any, base: Base) -> None:
        super().__init__(model, base)
        self.config.num_labels = 1
        self.score = nn.Linear(self.config.hidden_size, 1, bias=False, device=base.model.device)
        nn.init.normal_(self.score.weight, std=getattr(self.config, "initializer_range", 0.02))

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **_: Any) -> SequenceClassifierOutputWithPast:
        """Logits [batch, 1] of ``input_ids`` [batch, length], padded on the right."""
        backbone = self.model.get_base_model().base_model  # LoRA's modules are inside of it
        hidden = backbone(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
        last = hidden[torch.arange(len(hidden), device=hidden.device), attention_mask.sum(1) - 1]
        return SequenceClassifierOutputWithPast(logits=self.score(last.float()))


def save_reward_model(model: RewardModel, path: Path, manifest: Any) -> None:
    """Write ``model`` to ``path`` in the place of an older one, all or nothing. TrainingError when it is not finite."""
    config, tensors = adapter_of(model.model)
    tensors = {**tensors, f"base_model.model.{HEAD}.weight": model.score.weight}
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    if not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise TrainingError("the trained reward model is not finite; lower training.learning_rate")
    config = {**config, "task_type": "SEQ_CLS", "modules_to_save": [HEAD]}
    with replacing(path) as scratch:
        (scratch / _CONFIG).write_bytes(msgspec.json.format(msgspec.json.encode(config), indent=2))
        (scratch / _MANIFEST).write_bytes(encode_manifest(manifest))
        save_file(tensors, scratch / _WEIGHTS, metadata={"format": "pt"})


@torch.no_grad()
def scores_of(model: RewardModel, rows: list[list[int]], pad_id: int, batch_size: int) -> list[float]:
    """The score of each row of token ids."""
    model.eval()
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    out = [0.0] * len(rows)
    for at in range(0, len(order), batch_size):
        indices = order[at : at + batch_size]
        longest = len(rows[indices[-1]])
        ids = torch.tensor([rows[i] + [pad_id] * (longest - len(rows[i])) for i in indices], device=model.device)
        mask = torch.tensor([[1] * len(rows[i]) + [0] * (longest - len(rows[i])) for i in indices], device=model.device)
        for i, score in zip(indices, model(ids, mask).logits[:, 0].tolist(), strict=True):
            out[i] = score
    return out


class HotswapRewardTrainer(HotswapCheckpoints, RewardTrainer):  # type: ignore[misc]
    """Trains a RewardModel on rows that are tokenised already."""

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As trl's; the tokens are counted."""
        if self.model.training:
            self.tokens_seen += int(inputs["attention_mask"].sum())
        return super().compute_loss(model, inputs, *args, **kwargs)


class RewardTask(PreferenceTask):
    """A reward model on pairs."""

    def __init__(self, config: TrainConfig, preference: RewardPreference, base: Base) -> None:
        self._config, self._preference, self._base = config, preference, base
        self.data: PreferenceData[PairIds] = load_preference_data(config, base.tokenizer, base.end_ids)

    @override
    def compute_reference(self, model: Any) -> None:
        """Nothing: scores of answers have no reference."""

    @override
    def num_rows(self) -> int:
        return len(self.data.train)

    @override
    def make_trainer(self, model: Any, arguments: Any, callbacks: list[Any]) -> HotswapRewardTrainer:
        config = as_config(
            RewardConfig,
            arguments,
            max_length=None,
            disable_dropout=self._preference.disable_dropout,
            center_rewards_coefficient=self._preference.center_rewards or None,
            prediction_loss_only=True,
        )
        return HotswapRewardTrainer(
            model=RewardModel(model, self._base),
            args=config,
            train_dataset=_table(self.data.train),
            eval_dataset=_table(self.data.validation) if self.data.validation else None,
            processing_class=padded(self._base),
            callbacks=callbacks,
        )

    @override
    def evaluate(self, trainer: Any) -> dict[str, float]:
        both = [row.prompt + answer for row in self.data.validation for answer in (row.chosen, row.rejected)]
        if not both:
            return {}
        scores = scores_of(trainer.trained, both, self._base.pad_id, self._config.training.batch_size)
        margins = [chosen - rejected for chosen, rejected in zip(scores[::2], scores[1::2], strict=True)]
        return {"reward_accuracy": fmean(margin > 0 for margin in margins), "reward_margin": fmean(margins)}

    @override
    def export(self, trainer: Any, metrics: dict[str, float]) -> Path:
        path = Path(self._config.output) / result_directory(self._config)
        data = DataRef(sha256=self.data.sha256, rows=len(self.data.train))
        save_reward_model(trainer.trained, path, make_manifest(self._base, self._config, data, metrics))
        return path


def _table(rows: list[PairIds]) -> Dataset:
    return Dataset.from_list(
        [{"chosen_ids": row.prompt + row.chosen, "rejected_ids": row.prompt + row.rejected} for row in rows]
    )
