"""How long a run will take: its batches before it begins, a few real steps of them, and the rest in proportion.

Nothing is written into the run's output. The steps are chosen over all lengths; time goes with padded tokens, and those
of the whole run are known.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice, pairwise
from typing import Any, TypeVar

import msgspec
import torch
from torch.utils.data import Sampler
from transformers import PrinterCallback, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from trainer.base_model import load_base
from trainer.config.schema import TrainConfig, TrainingConfig
from trainer.data.batches import LengthBucketSampler, PackedSampler, Packing, pack
from trainer.data.disk import lengths_of
from trainer.data.encoding import IGNORED
from trainer.data.training_data import TrainingData
from trainer.loop.callbacks import peak_memory_mb
from trainer.loop.checkpoint import identity_of
from trainer.loop.failures import explained
from trainer.loop.packed_attention import use_packed_attention
from trainer.loop.trainer import AdapterTrainer, MethodTrainer, make_arguments, total_steps
from trainer.methods import apply_method
from trainer.plan.memory import BatchShape
from trainer.pooling.pooled_data import PooledData

T = TypeVar("T")
Chosen = Sequence["PlannedStep"]
MakeTrainer = Callable[[TrainConfig, "Workload", Chosen], "ChosenSteps"]


@dataclass(frozen=True)
class PlannedStep:
    """One optimizer step: its micro-batches of sampler items, each with its length.

    An item is the index of an example, or the indices that share a packed row.
    """

    batches: tuple[tuple[tuple[Any, int], ...], ...]

    @property
    def items(self) -> list[Any]:
        """The items in order."""
        return [item for batch in self.batches for item, _ in batch]

    @property
    def tokens(self) -> int:
        """Tokens without padding."""
        return sum(length for batch in self.batches for _, length in batch)

    @property
    def padded(self) -> int:
        """Tokens with padding: what is computed."""
        return sum(len(batch) * max(length for _, length in batch) for batch in self.batches)


class Workload:
    """The steps of the first epoch, drawn as the run will draw them, and how many steps there are in all."""

    def __init__(self, config: TrainConfig, data: TrainingData) -> None:
        packs = config.training.packing
        self.packing: Packing | None = pack(data.train, config.data.max_length) if packs else None
        self._data = data
        self._draw(config.training, lengths_of(data.train))

    def _draw(self, training: TrainingConfig, lengths: Sequence[int]) -> None:
        self.rows = len(self.packing or lengths)
        self.total_steps = total_steps(training, self.rows)
        items = _items(lengths, self.packing, training.batch_size, training.seed)
        micro = _chunks(items, training.batch_size)
        self.steps = [self._step(batches) for batches in _chunks(micro, training.gradient_accumulation)]
        self._whole = training.batch_size * training.gradient_accumulation

    def _step(self, batches: tuple[tuple[tuple[Any, int], ...], ...]) -> PlannedStep:
        return PlannedStep(batches)

    @property
    def tokens(self) -> float:
        """Tokens of the whole run, without padding."""
        return sum(step.tokens for step in self.steps) / len(self.steps) * self.total_steps

    @property
    def padded(self) -> float:
        """Tokens of the whole run, with padding."""
        return sum(step.padded for step in self.steps) / len(self.steps) * self.total_steps

    def largest_batch(self) -> BatchShape:
        """The sizes of the batch that needs most."""
        batch = max((batch for step in self.steps for batch in step.batches), key=_padded)
        indices = [index for item, _ in batch for index in (item if isinstance(item, tuple) else (item,))]
        labelled = sum(label != IGNORED for index in indices for label in self._data.train[index].labels)
        return BatchShape(len(batch), max(length for _, length in batch), math.ceil(labelled / len(batch)))

    def sample(self, count: int) -> list[PlannedStep]:
        """The largest step, and ``count`` from short to long that stand for equal shares of all."""
        whole = [step for step in self.steps if len(step.items) == self._whole] or self.steps[:1]
        ordered = sorted(whole, key=lambda step: step.padded)
        middles = [ordered[int((i + 0.5) / count * len(ordered))] for i in range(count)]
        return [ordered[-1], *middles]


def _items(lengths: Sequence[int], packing: Packing | None, batch_size: int, seed: int) -> Iterable[tuple[Any, int]]:
    if packing:
        return ((row, sum(lengths[i] for i in row)) for row in PackedSampler(packing, seed))
    return ((index, lengths[index]) for index in LengthBucketSampler(lengths, batch_size, seed))


def _padded(batch: tuple[tuple[Any, int], ...]) -> int:
    return len(batch) * max(length for _, length in batch)


def _chunks(items: Iterable[T], size: int) -> Iterator[tuple[T, ...]]:
    iterator = iter(items)
    return iter(lambda: tuple(islice(iterator, size)), ())


@dataclass(frozen=True)
class Timing:
    """What was measured, and what it means for the whole run. ``fastest`` and ``slowest`` are the range: were every
    step as the fastest or the slowest of those measured. Times in seconds, memory in MB.
    """

    measured_steps: int
    measured_seconds: float
    steps: int
    tokens: int
    train_seconds: float
    fastest: float
    slowest: float
    evaluations: int
    evaluation_seconds: float
    tokens_per_second: float
    peak_memory_mb: float

    @property
    def seconds(self) -> float:
        """The whole run, its evaluations included."""
        return self.train_seconds + self.evaluation_seconds


def measure(
    config: TrainConfig, data: TrainingData | PooledData, work: Workload, steps: int, make: MakeTrainer | None = None
) -> Timing:
    """Train ``steps`` steps that stand for the run, after its largest one, and measure. Raises TrainerError.

    ``make`` makes the trainer of a run that reads.
    """
    with explained(config), tempfile.TemporaryDirectory(prefix="hotswap-plan-") as scratch:
        chosen = work.sample(steps)
        quiet = _quiet(config, scratch, len(chosen))
        if config.training.threads:
            torch.set_num_threads(config.training.threads)
        trainer = (make or partial(_writing_trainer, data))(quiet, work, chosen)
        trainer.chosen = [item for step in chosen for item in step.items]
        clock = _Clock()
        trainer.add_callback(clock)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        evaluation = _evaluation_seconds(trainer, data, steps) if config.data.validation else 0.0
    seconds = [after - before for before, after in pairwise(clock.ends)]
    return _extrapolate(config, work, chosen[1:], seconds, evaluation)


def _extrapolate(
    config: TrainConfig, work: Workload, measured: Sequence[PlannedStep], seconds: Sequence[float], evaluation: float
) -> Timing:
    rates = [taken / step.padded for step, taken in zip(measured, seconds, strict=True)]
    train_seconds = sum(seconds) / sum(step.padded for step in measured) * work.padded
    every = make_arguments(config, work.rows).eval_steps
    evaluations = work.total_steps // every if evaluation and every else 0
    return Timing(
        measured_steps=len(measured),
        measured_seconds=sum(seconds),
        steps=work.total_steps,
        tokens=round(work.tokens),
        train_seconds=train_seconds,
        fastest=min(rates) * work.padded + evaluations * evaluation,
        slowest=max(rates) * work.padded + evaluations * evaluation,
        evaluations=evaluations,
        evaluation_seconds=evaluations * evaluation,
        tokens_per_second=work.tokens / train_seconds,
        peak_memory_mb=peak_memory_mb(),
    )


class _Clock(TrainerCallback):  # type: ignore[misc]
    """When each step ended. The first one warms up: it is no difference of two ends."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_args: Any, **_kwargs: Any) -> None:
        """Note the time, once the device is done."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.monotonic())


class _Chosen(Sampler[Any]):
    def __init__(self, items: Sequence[Any]) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._items)


class ChosenSteps(MethodTrainer):
    """To be mixed in before a trainer, which then trains on ``chosen`` items."""

    chosen: Sequence[Any] = ()

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[Any]:
        return _Chosen(self.chosen)


class _SampleTrainer(ChosenSteps, AdapterTrainer):
    """Trains on chosen steps."""


def _quiet(config: TrainConfig, output: str, steps: int) -> TrainConfig:
    """``config`` for ``steps`` steps that leave nothing behind."""
    training = msgspec.structs.replace(
        config.training,
        max_steps=steps,
        best_checkpoint=False,
        early_stopping=None,
        tensorboard=False,
        trackers=[],
    )
    return msgspec.structs.replace(config, output=output, training=training)


def arguments_of(config: TrainConfig, work: Workload) -> TrainingArguments:
    """transformers' arguments for steps of ``work`` that leave nothing behind."""
    arguments = make_arguments(config, work.rows)
    arguments.save_strategy, arguments.eval_strategy = SaveStrategy.NO, IntervalStrategy.NO
    return arguments


def _writing_trainer(
    data: TrainingData | PooledData, config: TrainConfig, work: Workload, _chosen: Chosen
) -> _SampleTrainer:
    assert isinstance(data, TrainingData), "rows that are read have a trainer of their own"
    base = load_base(config)
    set_seed(config.training.seed)
    if work.packing:
        use_packed_attention(base.model)
    model = apply_method(base, config.method, work.total_steps)
    identity = identity_of(config, base.fingerprint, data.sha256)
    return _SampleTrainer(
        model, arguments_of(config, work), data, base, config=config, identity=identity, packing=work.packing
    )


def _evaluation_seconds(trainer: ChosenSteps, data: TrainingData | PooledData, batches: int) -> float:
    """Seconds of one evaluation, from ``batches`` of its batches."""
    size, total = trainer.args.per_device_eval_batch_size, len(data.validation)
    lengths = [len(data.validation[i]) for i in range(total)]
    padded = [len(part) * max(part) for part in (lengths[i : i + size] for i in range(0, total, size))]
    numbers = sorted({int((i + 0.5) / batches * len(padded)) for i in range(batches)})
    some = [data.validation[i] for number in numbers for i in range(number * size, min((number + 1) * size, total))]
    trainer.eval_dataset = type(trainer.eval_dataset)(some)
    began = time.monotonic()
    trainer.evaluate()
    return (time.monotonic() - began) / sum(padded[number] for number in numbers) * sum(padded)
