"""Which examples train together, and how they are padded."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from trainer.data.examples import IGNORED, Example

_POOL_BATCHES = 32  # lengths are sorted within so many batches: little padding, and still random company


BLANK = -1  # the index of an example without labels


class ExampleDataset(Dataset[Example]):
    """Examples by index; ``blank_id`` is the one token of the blank."""

    def __init__(self, examples: Sequence[Example], blank_id: int = 0) -> None:
        self.examples = examples
        self._blank = Example((blank_id,), (IGNORED,))

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        return self._blank if index == BLANK else self.examples[index]


class LengthBucketSampler(Sampler[int]):
    """Indices whose consecutive runs of ``batch_size`` have like lengths; batches come in random order.

    The order depends on ``seed`` and the epoch only, so that a resumed run sees what the first one would have seen.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self._lengths = lengths
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the data loader before each epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        rng = random.Random(f"{self._seed}/{self._epoch}")
        order = list(range(len(self._lengths)))
        rng.shuffle(order)
        pool = self._batch_size * _POOL_BATCHES
        order = [i for at in range(0, len(order), pool) for i in sorted(order[at : at + pool], key=self._length)]
        batches = [order[at : at + self._batch_size] for at in range(0, len(order), self._batch_size)]
        last = [batches.pop()] if batches and len(batches[-1]) < self._batch_size else []
        rng.shuffle(batches)
        return (i for batch in [*batches, *last] for i in batch)

    def _length(self, index: int) -> int:
        return self._lengths[index]


class FilledBatches(Sampler[Any]):
    """What ``sampler`` gives, and then ``filler`` until the last of its batches is as large as the others.

    Processes that share every batch get equal parts of it, and learn from the last batch what one process would.
    """

    def __init__(self, sampler: Any, batch_size: int, filler: Any) -> None:
        self._sampler = sampler
        self._batch_size = batch_size
        self._filler = filler

    def set_epoch(self, epoch: int) -> None:
        """Called by the data loader before each epoch."""
        self._sampler.set_epoch(epoch)

    def __len__(self) -> int:
        return -(-len(self._sampler) // self._batch_size) * self._batch_size

    def __iter__(self) -> Iterator[Any]:
        yield from self._sampler
        yield from [self._filler] * (len(self) - len(self._sampler))


class Collator:
    """Pads examples on the right to the longest of them."""

    def __init__(self, pad_id: int) -> None:
        self._pad_id = pad_id

    def __call__(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """``input_ids``, ``labels`` and ``attention_mask``, each [len(examples), longest] int64."""
        longest = max(len(example) for example in examples)

        def padded(rows: Sequence[Sequence[int]], value: int) -> Tensor:
            return torch.tensor([[*row, *([value] * (longest - len(row)))] for row in rows])

        return {
            "input_ids": padded([example.input_ids for example in examples], self._pad_id),
            "labels": padded([example.labels for example in examples], IGNORED),
            "attention_mask": padded([[1] * len(example) for example in examples], 0),
        }
