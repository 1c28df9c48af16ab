from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from trainer.data.batches import Collator, LengthBucketSampler
from trainer.data.examples import IGNORED, Example


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
