from __future__ import annotations

import random

import pytest
import torch
from transformers import DataCollatorWithFlattening

from trainer.data.examples import IGNORED, Example
from trainer.data.packing import PackedCollator, PackedDataset, PackedSampler, Packing

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
