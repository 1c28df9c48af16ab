"""What a plan of a run that reads is made of: its rows, its model and its step on shapes, and its real trainer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor
from transformers import set_seed
from typing_extensions import override

from trainer.base_model import Base, load_base
from trainer.config.schema import TrainConfig
from trainer.config.task import ReadingTask
from trainer.loop.checkpoint import identity_of
from trainer.methods import apply_method
from trainer.plan.memory import BatchShape
from trainer.plan.timing import Chosen, ChosenSteps, PlannedStep, Workload, arguments_of
from trainer.pooling.examples import PooledCollator
from trainer.pooling.losses import make_losses
from trainer.pooling.model import PooledModel
from trainer.pooling.pooled_data import PooledData
from trainer.pooling.trainer import PooledTrainer
from trainer.run import reading_score

Sizes = Sequence[tuple[int, int]]  # of each row: how many texts, and the tokens of the longest


@dataclass(frozen=True)
class ReadStep(PlannedStep):
    """One optimizer step, in which a row has as many texts as ``sizes`` say; all of a batch are padded alike."""

    sizes: Sizes = ()

    @property
    @override
    def padded(self) -> int:
        shapes = [_shape(batch, self.sizes) for batch in self.batches]
        return sum(shape.rows * shape.length for shape in shapes)


class ReadWorkload(Workload):
    """The steps of a run that reads."""

    def __init__(self, config: TrainConfig, data: PooledData) -> None:
        self.packing = None
        self._sizes: Sizes = [(len(row.texts), max(map(len, row.texts))) for row in data.train]
        self._draw(config.training, data.train.lengths)

    @property
    def largest(self) -> list[int]:
        """The rows of the batch that needs most."""
        batches = [batch for step in self.steps for batch in step.batches]
        return [index for index, _ in max(batches, key=lambda batch: _tokens(_shape(batch, self._sizes)))]

    @override
    def largest_batch(self) -> BatchShape:
        return _shape([(index, 0) for index in self.largest], self._sizes)

    @override
    def _step(self, batches: Any) -> PlannedStep:
        return ReadStep(batches, self._sizes)


def _shape(batch: Sequence[tuple[Any, int]], sizes: Sizes) -> BatchShape:
    longest = max(sizes[index][1] for index, _ in batch)
    return BatchShape(sum(sizes[index][0] for index, _ in batch), longest, longest)


def _tokens(shape: BatchShape) -> int:
    return shape.rows * shape.length


@dataclass(frozen=True)
class Reading:
    """What makes a model with a method one that reads, and the largest of its batches."""

    task: ReadingTask
    data: PooledData
    batch: dict[str, Tensor]
    smoothing: float

    @classmethod
    def of(cls, config: TrainConfig, data: PooledData, work: ReadWorkload) -> Reading:
        """Of the run of ``config``, which reads."""
        assert config.reading is not None
        labels = data.labels
        collate = PooledCollator(0, len(labels.names) if labels and labels.several else 0)
        batch = collate([data.train[index] for index in work.largest])
        return cls(config.reading, data, batch, config.training.label_smoothing)

    def model(self, adapted: Any, base: Base) -> PooledModel:
        """``adapted`` with the head of the task. Raises ConfigError for a base that cannot be read so."""
        return PooledModel(adapted, base, getattr(self.task, "pooling", "last"), self.data.num_outputs)

    def losses(self, model: PooledModel) -> Tensor:
        """The losses of the largest batch; ``model`` has no weights."""
        out: Tensor = model(self.batch["input_ids"].to("meta"), self.batch["attention_mask"].to("meta"))
        return make_losses(self.task, self.data, self.smoothing)(out, self.batch)


class _SampleTrainer(ChosenSteps, PooledTrainer):
    """Trains on chosen steps."""


def sample_trainer(data: PooledData, config: TrainConfig, work: Workload, chosen: Chosen) -> _SampleTrainer:
    """What trains ``chosen`` steps of ``work``, as ``trainer.plan.timing`` wants it."""
    assert config.reading is not None
    base = load_base(config)
    set_seed(config.training.seed)
    adapted = apply_method(base, config.method, work.total_steps)
    model = PooledModel(adapted, base, getattr(config.reading, "pooling", "last"), data.num_outputs)
    return _SampleTrainer(
        model,
        arguments_of(config, work),
        data,
        base,
        config=config,
        task=config.reading,
        identity=identity_of(config, base.fingerprint, data.sha256),
        score=reading_score(data.learned),
    )


def sampling(data: PooledData) -> Any:
    """``sample_trainer`` of ``data``."""
    return partial(sample_trainer, data)
