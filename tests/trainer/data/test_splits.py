"""Which rows train and which validate, for any reader of rows: draws, repeats, sources of their own, progress."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.trainer.support import colour_rows, write_jsonl
from trainer.config.data import DataConfig
from trainer.data.conversations import ConversationReader, DroppedRow
from trainer.data.rows import RawRow
from trainer.data.splits import (
    DatasetSplits,
    describe_dropped,
    find_splits,
    find_validation,
    held_back_again,
    progress_messages,
    rows_at,
    split_rows,
)
from trainer.data.training_data import split_conversations
from trainer.errors import DataError


class Numbers:
    """Reads rows that hold a number; negative ones cannot be used. Counts what it reads."""

    def __init__(self) -> None:
        self.reads = 0

    def read(self, row: RawRow) -> int:
        self.reads += 1
        number = row.values["n"]
        assert isinstance(number, int)
        if number < 0:
            raise DroppedRow("negative")
        return number

    def key(self, value: int) -> bytes:
        return str(value).encode()


def numbers(path: Path, values: list[int]) -> str:
    return str(write_jsonl(path, [{"n": value} for value in values]))


def read_again(splits: DatasetSplits[Numbers], part: str) -> list[int]:
    indices = splits.split.train if part == "train" else splits.split.validation
    return [value for _row, value in rows_at(splits.training_source, indices)]


def test_rows_are_split_by_what_the_reader_makes_of_them(tmp_path: Path) -> None:
    path = numbers(tmp_path / "n.jsonl", [5, -1, 7, 5, 9, -2, 7, 8])
    config = DataConfig(path=path, validation=2)
    splits = find_splits(config, 0, Numbers)
    found = splits.training_source
    assert (found.rows, found.usable.tolist(), found.dropped) == (8, [0, 2, 3, 4, 6, 7], Counter(negative=2))
    assert splits.split.repeated == 2
    together = Counter(read_again(splits, "train")) + Counter(read_again(splits, "validation"))
    assert together == Counter([5, 7, 5, 9, 7, 8])
    assert len(read_again(splits, "validation")) == 2
    assert np.array_equal(find_splits(config, 0, Numbers).split.train, splits.split.train)


def test_repeats_may_be_dropped_and_the_first_of_them_stays(tmp_path: Path) -> None:
    path = numbers(tmp_path / "n.jsonl", [5, 7, 5, 9, 7])
    splits = find_splits(DataConfig(path=path, validation=0, duplicates="drop"), 0, Numbers)
    assert (splits.split.train.tolist(), splits.split.repeated) == ([0, 1, 3], 2)


def test_each_source_has_a_reader_of_its_own(tmp_path: Path) -> None:
    path, own = numbers(tmp_path / "n.jsonl", [1, 2, 3]), numbers(tmp_path / "own.jsonl", [3, -4, 5])
    splits = find_splits(DataConfig(path=path, validation=own), 0, Numbers)
    found, indices = splits.validating
    assert found is splits.validation_source
    assert found.reader is not splits.training_source.reader
    assert indices.tolist() == [0, 2]
    assert splits.overlapping.tolist() == [0]
    assert [list(used) for _survey, used in splits.by_survey()] == [["train"], ["validation"]]


def test_rows_to_validate_on_are_those_of_the_split(tmp_path: Path) -> None:
    path = numbers(tmp_path / "n.jsonl", list(range(20)))
    config = DataConfig(path=path, validation=0.25)
    _found, indices = find_validation(config, 3, Numbers)
    assert np.array_equal(indices, find_splits(config, 3, Numbers).split.validation)
    assert len(indices) == 5
    with pytest.raises(DataError, match=r"there are no validation rows \(data.validation is 0\)"):
        find_validation(DataConfig(path=path, validation=0), 3, Numbers)


def test_rows_to_train_on_are_not_read_for_a_validation_file(tmp_path: Path) -> None:
    own, made = numbers(tmp_path / "own.jsonl", [3, -4, 5]), list[Numbers]()

    def make_reader() -> Numbers:
        made.append(Numbers())
        return made[-1]

    path = numbers(tmp_path / "n.jsonl", [1, 2])
    _found, indices = find_validation(DataConfig(path=path, validation=own), 0, make_reader)
    assert indices.tolist() == [0, 2]
    assert [reader.reads for reader in made] == [3]


def test_a_source_of_which_nothing_is_left_is_an_error_with_the_reasons(tmp_path: Path) -> None:
    path = numbers(tmp_path / "n.jsonl", [-1, -2])
    with pytest.raises(DataError, match=r"n.jsonl leaves nothing to learn from: 2 rows: negative"):
        find_splits(DataConfig(path=path, validation=0), 0, Numbers)


def test_draws_depend_on_the_numbers_of_rows_and_the_seed_only() -> None:
    config = DataConfig(path="x", validation=0.25, max_rows=12)
    keys = np.arange(20, dtype=np.uint64)
    one = split_rows(keys, np.arange(20), config, 1)
    other = split_rows(keys[::-1].copy(), np.arange(100, 120), config, 1)
    assert (one.train + 100).tolist() == other.train.tolist()
    assert (one.validation + 100).tolist() == other.validation.tolist()
    assert (len(one.train), len(one.validation)) == (9, 3)
    assert split_rows(keys, np.arange(20), config, 2).train.tolist() != one.train.tolist()


def test_conversations_are_split_by_the_layout_of_their_first_row(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "data.jsonl", colour_rows(8))
    splits = split_conversations(DataConfig(path=str(path), validation=2), 0)
    assert str(splits.training_source.reader.layout) == "prompt_response (prompt, response)"
    again = find_splits(splits.config, 0, partial(ConversationReader, splits.config))
    assert np.array_equal(again.split.validation, splits.split.validation)


@pytest.mark.parametrize(
    ("dropped", "words"),
    [
        ({}, ""),
        ({"b": 1, "a": 1, "c": 2000}, "2,000 rows: c; 1 row: a; 1 row: b"),
    ],
)
def test_what_is_dropped_is_said_most_first(dropped: dict[str, int], words: str) -> None:
    assert describe_dropped(dropped) == words


def test_progress_is_spoken_of_at_most_once_in_a_while(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "data.jsonl", colour_rows(600))
    said, unsaid = list[str](), list[str]()
    config: Any = DataConfig(path=str(path), validation=0)
    split_conversations(config, 0, progress_messages(said.append, seconds=0))
    split_conversations(config, 0, progress_messages(unsaid.append))
    assert said == [f"reading {path}: 256 rows", f"reading {path}: 512 rows"]
    assert not unsaid


@pytest.mark.parametrize(("usable", "held"), [(range(10, 80), 3), ((40, 41, 42), 2), ((), 0)])
def test_others_are_held_back_where_none_of_those_drawn_can_be_used(tmp_path: Path, usable: Any, held: int) -> None:
    path = numbers(tmp_path / "n.jsonl", list(range(80)))
    splits = find_splits(DataConfig(path=path, validation=3), 0, Numbers)
    first = set(read_again(splits, "validation"))
    assert not first & {40, 41, 42}
    can_use = {*usable} - first
    again = held_back_again(splits, 0, can_use.__contains__)
    others, rest = read_again(again, "validation"), read_again(again, "train")
    assert (len(others), again.split.redrawn) == (held, True)
    assert {*others} <= can_use
    assert sorted([*others, *rest]) == list(range(80))
    assert read_again(held_back_again(splits, 0, can_use.__contains__), "validation") == others


def test_rows_held_back_stay_where_one_can_be_used_or_no_other_can(tmp_path: Path) -> None:
    config = DataConfig(path=numbers(tmp_path / "n.jsonl", list(range(80))), validation=3)
    splits = find_splits(config, 0, Numbers)
    one = read_again(splits, "validation")[-1]
    for can_use in ({one}, {one, 40}, {40}):
        assert held_back_again(splits, 0, can_use.__contains__) is splits
    own = DataConfig(path=config.path, validation=numbers(tmp_path / "own.jsonl", [1]))
    splits = find_splits(own, 0, Numbers)
    assert held_back_again(splits, 0, {40, 41}.__contains__) is splits
