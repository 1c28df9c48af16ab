"""The batches of a run before it begins: how many, how large, and which of them stand for all."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from trainer.config.schema import TrainConfig
from trainer.data.batches import LengthBucketSampler
from trainer.data.disk import lengths_of
from trainer.data.examples import IGNORED
from trainer.data.load import TrainingData
from trainer.data.packing import PackedSampler, Packing, pack
from trainer.loop.trainer import total_steps
from trainer.plan.memory import Batch

T = TypeVar("T")


@dataclass(frozen=True)
class Step:
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
        training = config.training
        self.packing: Packing | None = pack(data.train, config.data.max_length) if training.packing else None
        self.rows = len(self.packing or data.train)
        self.total_steps = total_steps(training, self.rows)
        items = _items(lengths_of(data.train), self.packing, training.batch_size, training.seed)
        micro = _chunks(items, training.batch_size)
        self.steps = [Step(batches) for batches in _chunks(micro, training.gradient_accumulation)]
        self._whole = training.batch_size * training.gradient_accumulation
        self._data = data

    @property
    def tokens(self) -> float:
        """Tokens of the whole run, without padding."""
        return sum(step.tokens for step in self.steps) / len(self.steps) * self.total_steps

    @property
    def padded(self) -> float:
        """Tokens of the whole run, with padding."""
        return sum(step.padded for step in self.steps) / len(self.steps) * self.total_steps

    def largest_batch(self) -> Batch:
        """The sizes of the batch that needs most."""
        batch = max((batch for step in self.steps for batch in step.batches), key=_padded)
        indices = [index for item, _ in batch for index in (item if isinstance(item, tuple) else (item,))]
        labelled = sum(label != IGNORED for index in indices for label in self._data.train[index].labels)
        return Batch(len(batch), max(length for _, length in batch), math.ceil(labelled / len(batch)))

    def sample(self, count: int) -> list[Step]:
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
