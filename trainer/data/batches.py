"""Which examples train together, padded or packed.

Packing puts several examples in one row, each of which sees itself only, as if it stood alone. A packed row restarts
``position_ids`` with every example and has no attention mask. From that transformers makes attention block-diagonal,
whichever implementation it uses; ``trainer.loop.packed_attention`` asks the model whether it is so. Nothing here
knows models.
"""

from __future__ import annotations

import random
from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from trainer.data.disk import lengths_of
from trainer.data.encoding import IGNORED, Example
from trainer.errors import DataError

_POOL_BATCHES = 32  # lengths are sorted within so many batches: little padding, and still random company
NO_SOURCE = (
    "this base is an encoder-decoder, which reads a prompt and writes an answer; a row of plain text has no prompt: "
    "give rows of both, or take another base"
)
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

    def asking(self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        """A batch in which the only label of each row is the token after its answer so far."""
        return self(
            [_next_of((*prompt, *answer), self._pad_id) for prompt, answer in zip(prompts, answers, strict=True)]
        )


class Seq2SeqCollator:
    """Splits examples where their labels begin: the encoder reads what stands before, the decoder writes the rest.

    The decoder's part is a row as that of a decoder alone: ``start_id``, then what is learned.
    """

    def __init__(self, pad_id: int, start_id: int) -> None:
        self._pad_id, self._start_id = pad_id, start_id
        self._single = Collator(pad_id)

    def __call__(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """``input_ids`` and ``attention_mask`` [n, longest source]; ``decoder_input_ids`` and ``labels`` [n, longest
        target + 1]; ``num_tokens`` [n] of both together. Raises DataError for an example without a source."""
        sources, targets = zip(*map(self._split, examples), strict=True)
        return self._batch(sources, targets)

    def asking(self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        """A batch in which the only label of each row is the token after its answer so far."""
        return self._batch(prompts, [_next_of((self._start_id, *answer), self._pad_id) for answer in answers])

    def _split(self, example: Example) -> tuple[tuple[int, ...], Example]:
        begin = next((i for i, label in enumerate(example.labels) if label != IGNORED), len(example))
        if begin <= 1 and begin < len(example):  # the first token of a plain text has no label either
            raise DataError(NO_SOURCE)
        ids, labels = example.input_ids[begin:], example.labels[begin:]
        return example.input_ids[:begin], Example((self._start_id, *ids), (IGNORED, *labels))

    def _batch(self, sources: Sequence[Sequence[int]], targets: Sequence[Example]) -> dict[str, Tensor]:
        read = self._single([Example(tuple(ids), (IGNORED,) * len(ids)) for ids in sources])
        written = self._single(targets)
        return {
            "input_ids": read["input_ids"],
            "attention_mask": read["attention_mask"],
            "decoder_input_ids": written["input_ids"],
            "labels": written["labels"],
            "num_tokens": torch.tensor([len(s) + len(t) - 1 for s, t in zip(sources, targets, strict=True)]),
        }


def _next_of(ids: Sequence[int], pad_id: int) -> Example:
    """``ids`` with one token more, the only one to be predicted."""
    return Example((*ids, pad_id), (*[IGNORED] * len(ids), pad_id))


PackedRow = tuple[int, ...]  # indices of the examples that share a packed row


class Packing:
    """Examples of ``lengths`` in as few rows of ``capacity`` tokens as best-fit decreasing finds.

    Which lengths share a row is settled once, so that every epoch has the same number of rows; which of the examples of
    a length come there is drawn anew in every epoch, by the seed.
    """

    def __init__(self, lengths: Sequence[int], capacity: int) -> None:
        self._of_length: dict[int, list[int]] = defaultdict(list)
        for index, length in enumerate(lengths):
            self._of_length[length].append(index)
        self.rows = _best_fit(sorted(lengths, reverse=True), capacity)  # the lengths in each row

    def __len__(self) -> int:
        return len(self.rows)

    def epoch(self, seed: int, epoch: int) -> list[PackedRow]:
        """The rows of one epoch in their order: every example once."""
        rng = random.Random(f"{seed}/{epoch}")
        waiting = {length: rng.sample(indices, len(indices)) for length, indices in self._of_length.items()}
        rows = [tuple(waiting[length].pop() for length in lengths) for lengths in self.rows]
        rng.shuffle(rows)
        return rows


def pack(examples: Sequence[Example], capacity: int) -> Packing:
    """How to pack ``examples``."""
    return Packing(lengths_of(examples), capacity)


def _best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """``lengths``, longest first, each into the fullest row that still has room for it."""
    rows: list[list[int]] = []
    with_room: dict[int, list[list[int]]] = defaultdict(list)
    rooms: list[int] = []  # the keys of with_room, ascending
    for length in lengths:
        at = bisect_left(rooms, length)
        if at == len(rooms):
            rows.append([])
            row, room = rows[-1], capacity
        else:
            room = rooms[at]
            row = with_room[room].pop()
            if not with_room[room]:
                del with_room[room], rooms[at]
        row.append(length)
        room -= length
        if room not in with_room:
            insort(rooms, room)
        with_room[room].append(row)
    return rows


class PackedSampler(Sampler[PackedRow]):
    """The rows of one epoch after the other. A resumed run sees what the first one would have seen."""

    def __init__(self, packing: Packing, seed: int) -> None:
        self._packing = packing
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the data loader before each epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._packing)

    def __iter__(self) -> Iterator[PackedRow]:
        return iter(self._packing.epoch(self._seed, self._epoch))


class PackedDataset(Dataset[tuple[Example, ...]]):
    """Examples by packed row. Its length is that of ``packing``."""

    def __init__(self, examples: Sequence[Example], packing: Packing) -> None:
        self._examples = examples
        self.packing = packing

    def __len__(self) -> int:
        return len(self.packing)

    def __getitem__(self, row: PackedRow) -> tuple[Example, ...]:
        return tuple(self._examples[index] for index in row)


class PackedCollator:
    """Packed rows, padded on the right to the longest of them. Padding is a block of its own that nothing sees."""

    def __init__(self, pad_id: int) -> None:
        self._pad_id = pad_id
        self._single = Collator(pad_id)

    def __call__(self, rows: Sequence[tuple[Example, ...]] | Sequence[Example]) -> dict[str, Tensor]:
        """``input_ids``, ``labels``, ``position_ids``, each [len(rows), longest], and ``num_tokens`` [len(rows)].

        Rows that are single examples, as those to validate on, are padded as without packing.
        """
        packed = [row for row in rows if isinstance(row, tuple)]
        if not packed:
            return self._single([row for row in rows if isinstance(row, Example)])
        lengths = [sum(map(len, row)) for row in packed]
        shape = (len(packed), max(1, *lengths))  # the rows that fill a last batch are empty
        input_ids = torch.full(shape, self._pad_id)
        labels = torch.full(shape, IGNORED)
        position_ids = torch.empty(shape, dtype=torch.long)
        for i, (row, length) in enumerate(zip(packed, lengths, strict=True)):
            input_ids[i, :length] = torch.tensor([token for example in row for token in example.input_ids])
            # the first label of an example would be predicted from the one before it
            labels[i, :length] = torch.tensor([x for example in row for x in (IGNORED, *example.labels[1:])])
            starts = [*map(len, row), shape[1] - length]
            position_ids[i] = torch.cat([torch.arange(count) for count in starts])
        return {
            "input_ids": input_ids,
            "labels": labels,
            "position_ids": position_ids,
            "num_tokens": torch.tensor(lengths),
        }
