"""Which examples train together: like lengths, padding, and packed rows."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch
from transformers import DataCollatorWithFlattening

from trainer.data.batches import (
    Collator,
    LengthBucketSampler,
    PackedCollator,
    PackedDataset,
    PackedSampler,
    Packing,
    Seq2SeqCollator,
)
from trainer.data.encoding import IGNORED, Example
from trainer.errors import DataError


def padding(order: Sequence[int], lengths: Sequence[int], batch: int) -> int:
    parts = [order[at : at + batch] for at in range(0, len(order), batch)]
    return sum(max(lengths[i] for i in part) - lengths[j] for part in parts for j in part)


@pytest.mark.parametrize("count", [1, 7, 8, 300])
def test_every_row_comes_once_in_each_epoch(count: int) -> None:
    sampler = LengthBucketSampler(list(range(count)), 8, seed=0)
    for epoch in range(2):
        sampler.set_epoch(epoch)
        assert sorted(sampler) == list(range(count))


def test_the_order_depends_on_seed_and_epoch_only() -> None:
    random.seed(1)
    lengths = [random.randrange(10, 200) for _ in range(100)]
    sampler = LengthBucketSampler(lengths, 8, seed=3)
    first = list(sampler)
    random.random()
    assert list(LengthBucketSampler(lengths, 8, seed=3)) == first
    assert list(LengthBucketSampler(lengths, 8, seed=4)) != first
    sampler.set_epoch(1)
    assert list(sampler) != first


def test_rows_of_like_length_train_together_but_not_in_order_of_length() -> None:
    rng = random.Random(0)
    lengths = [rng.randrange(10, 400) for _ in range(512)]
    order = list(LengthBucketSampler(lengths, 8, seed=0))
    assert padding(order, lengths, 8) < padding(range(512), lengths, 8) / 10
    batches = [lengths[order[at]] for at in range(0, 512, 8)]
    assert batches != sorted(batches)


def test_padding_is_on_the_right_and_never_learned() -> None:
    batch = Collator(9)([Example((1, 2, 3), (IGNORED, 2, 3)), Example((4,), (IGNORED,))])
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 9, 9]]
    assert batch["labels"].tolist() == [[IGNORED, 2, 3], [IGNORED] * 3]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


def test_an_encoder_reads_what_stands_before_the_labels_and_a_decoder_writes_the_rest() -> None:
    collate = Seq2SeqCollator(9, start_id=0)
    examples = [Example((1, 2, 3, 4), (IGNORED, IGNORED, 3, 4)), Example((5, 6, 7, 8), (IGNORED,) * 3 + (8,))]
    batch = {name: tensor.tolist() for name, tensor in collate(examples).items()}
    assert batch == {
        "input_ids": [[1, 2, 9], [5, 6, 7]],
        "attention_mask": [[1, 1, 0], [1, 1, 1]],
        "decoder_input_ids": [[0, 3, 4], [0, 8, 9]],
        "labels": [[IGNORED, 3, 4], [IGNORED, 8, IGNORED]],
        "num_tokens": [4, 4],
    }
    blank = collate([Example((9,), (IGNORED,))])  # fills the last batch of several processes
    assert (blank["decoder_input_ids"].tolist(), blank["num_tokens"].tolist()) == ([[0]], [1])
    with pytest.raises(DataError, match="plain text has no prompt"):
        collate([Example((1, 2, 3), (IGNORED, 2, 3))])


@pytest.mark.parametrize("collate", [Collator(9), Seq2SeqCollator(9, start_id=0)])
def test_asking_has_one_label_a_row_behind_its_answer(collate: Collator | Seq2SeqCollator) -> None:
    batch = collate.asking([(1, 2), (3,)], [(), (4, 5)])
    written = batch.get("decoder_input_ids", batch["input_ids"]).tolist()
    at = [[i for i, label in enumerate(row) if label != IGNORED] for row in batch["labels"].tolist()]
    if isinstance(collate, Collator):
        assert (written, at) == ([[1, 2, 9, 9], [3, 4, 5, 9]], [[2], [3]])
    else:
        assert (written, at) == ([[0, 9, 9, 9], [0, 4, 5, 9]], [[1], [3]])
        assert batch["input_ids"].tolist() == [[1, 2], [3, 9]]


EXAMPLES = [
    Example((5, 6, 7, 8, 9), (IGNORED, IGNORED, 7, 8, 9)),
    Example((11, 12, 13), (11, IGNORED, 13)),
    Example((1, 2), (IGNORED, 2)),
]


def some_lengths(count: int, *, longest: int = 100) -> list[int]:
    rng = random.Random(0)
    return [min(longest, 2 + int(rng.expovariate(1 / 20))) for _ in range(count)]


@pytest.mark.parametrize("count", [1, 2, 50, 2000])
def test_every_example_comes_once_an_epoch_in_rows_that_hold_it(count: int) -> None:
    lengths = some_lengths(count)
    packing = Packing(lengths, 100)
    for epoch in range(3):
        rows = packing.epoch(0, epoch)
        assert len(rows) == len(packing)
        assert sorted(index for row in rows for index in row) == list(range(count))
        assert max(sum(lengths[index] for index in row) for row in rows) <= 100


def test_rows_are_as_good_as_full() -> None:
    lengths = some_lengths(2000)
    assert len(Packing(lengths, 100)) <= sum(lengths) / 100 * 1.01 + 1


def test_best_fit_takes_the_fullest_row_with_room() -> None:
    assert Packing([6, 4, 5, 3, 2], 10).rows == [[6, 4], [5, 3, 2]]
    assert Packing([10, 10, 1], 10).rows == [[10], [10], [1]]


def test_company_and_order_change_with_the_epoch_and_depend_on_nothing_else() -> None:
    packing = Packing(some_lengths(300), 100)
    sampler = PackedSampler(packing, seed=3)
    first = list(sampler)
    assert len(sampler) == len(first)
    random.random()
    assert list(PackedSampler(Packing(some_lengths(300), 100), seed=3)) == first
    assert list(PackedSampler(packing, seed=4)) != first
    sampler.set_epoch(1)
    assert len({frozenset(row) for row in sampler} & {frozenset(row) for row in first}) < len(first) / 2


def test_a_packed_row_restarts_positions_and_learns_nothing_across_examples() -> None:
    packing = Packing([5, 3, 2], 8)
    dataset = PackedDataset(EXAMPLES, packing)
    assert len(dataset) == 2
    batch = PackedCollator(9)([dataset[0, 1], dataset[2,]])
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9, 11, 12, 13], [1, 2, 9, 9, 9, 9, 9, 9]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4, 0, 1, 2], [0, 1, 0, 1, 2, 3, 4, 5]]
    i = IGNORED
    assert batch["labels"].tolist() == [[i, i, 7, 8, 9, i, i, 13], [i, 2, i, i, i, i, i, i]]
    assert batch["num_tokens"].tolist() == [8, 2]


def test_one_row_is_what_transformers_makes_of_it() -> None:
    """Except its first label, which predicts across nothing."""
    ours = PackedCollator(9)([tuple(EXAMPLES)])
    theirs = DataCollatorWithFlattening(return_tensors="pt")(
        [{"input_ids": list(example.input_ids), "labels": list(example.labels)} for example in EXAMPLES]
    )
    for name in ("input_ids", "position_ids", "labels"):
        torch.testing.assert_close(ours[name], theirs[name])


def test_rows_to_validate_on_are_not_packed() -> None:
    batch = PackedCollator(9)(EXAMPLES)
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 0, 0, 0]]
