"""The training loop of tasks that read, and what the model says of the rows held back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from transformers import TrainerControl, TrainingArguments

from trainer.base_model import Base
from trainer.config.schema import TrainConfig
from trainer.config.task import ReadingTask
from trainer.data.batches import BLANK, FilledBatches, LengthBucketSampler
from trainer.distributed import processes
from trainer.loop.checkpoint import RunIdentity
from trainer.loop.trainer import MethodTrainer
from trainer.pooling.answers import Answers, Said, Score
from trainer.pooling.examples import PooledCollator, PooledDataset
from trainer.pooling.losses import beside_others, count_losses, make_losses
from trainer.pooling.model import PooledModel
from trainer.pooling.pooled_data import PooledData


class PooledTrainer(MethodTrainer):
    """Trains a PooledModel. ``score`` is asked at each evaluation."""

    def __init__(
        self,
        model: PooledModel,
        arguments: TrainingArguments,
        data: PooledData,
        base: Base,
        *,
        config: TrainConfig,
        task: ReadingTask,
        identity: RunIdentity,
        score: Score,
    ) -> None:
        several = data.labels is not None and data.labels.several
        super().__init__(
            model,
            config,
            identity,
            args=arguments,
            data_collator=PooledCollator(base.pad_id, len(data.labels.names) if data.labels and several else 0),
            train_dataset=PooledDataset(data.train, base.pad_id),
            eval_dataset=PooledDataset(data.validation) if len(data.validation) else None,
        )
        self._losses = make_losses(task, data, config.training.label_smoothing)
        self._labels, self.score = data.labels, score

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """The mean loss per row or word over the whole accumulated batch, this part's share of it."""
        out, batch = beside_others(_outputs(model, inputs), inputs)
        return self.mean_loss(self._losses(out, batch), num_items_in_batch)

    def evaluate(self, *_args: Any, **_kwargs: Any) -> dict[str, float]:
        """The validation loss, the mean over all rows or words, and the scores of what the model says of them."""
        loss, answers = self.answers()
        metrics = {"eval_loss": loss}
        metrics |= {f"eval_{name}": value for name, value in self.score(*answers).items()}
        self.log(metrics)
        self.control: TrainerControl = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    @torch.no_grad()
    def answers(self) -> tuple[float, Answers]:
        """The loss of the rows held back, and what the model says of each. Every process answers all of them."""
        self.model.eval()
        total, rows = 0.0, 0
        said = Said(self._labels)
        for batch in DataLoader(self.eval_dataset, self._config.batch_size, collate_fn=self.data_collator):
            inputs = self._prepare_inputs(batch)
            out = _outputs(self.model, inputs)
            losses = self._losses(out, inputs)
            total += float(losses.double().sum())
            rows += len(losses)
            said.add(out, inputs)
        return total / rows, said.answers()

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Tensor]], device: torch.device) -> Tensor:
        return torch.tensor(processes.total(sum(map(count_losses, batch_samples))), device=device)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[Any]:
        dataset = train_dataset or self.train_dataset
        batch = self.args.per_device_train_batch_size * self.args.world_size
        rows = LengthBucketSampler(dataset.examples.lengths, batch, self.args.seed)
        return FilledBatches(rows, batch, filler=BLANK) if self.args.world_size > 1 else rows


def _outputs(model: torch.nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    out: Tensor = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
    return out
