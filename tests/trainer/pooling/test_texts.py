"""Rows of texts and targets, and what is said of those that cannot be used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.trainer.pooling.support import data_of
from tests.trainer.support import make_config
from trainer.errors import ConfigError, DataError
from trainer.pooling.pooled_data import PooledData


def load(folder: Path, base: Path, rows: list[Any], *overrides: str, task: str = "classification") -> PooledData:
    config = make_config(folder, base, f"task={task}", "data.validation=0", "eval_steps=null", *overrides, rows=rows)
    return data_of(config, base)


def classes(*labels: Any, column: str = "label") -> list[dict[str, Any]]:
    return [{"text": f"text {i}", column: label} for i, label in enumerate(labels)]


@pytest.mark.parametrize(
    ("rows", "names"),
    [
        (classes("b", "a", "b"), ("a", "b")),
        (classes(10, 9, 10), ("9", "10")),
        (classes("2", "10", "2"), ("2", "10")),
        (classes(True, False), ("false", "true")),
        (classes(1.0, 0.0), ("0", "1")),
        (classes("x", "y", column="category"), ("x", "y")),
        ([{"prompt": "a", "response": "p"}, {"prompt": "b", "response": "q"}], ("p", "q")),
        ([{"premise": "a", "hypothesis": "b", "label": i} for i in (0, 1)], ("0", "1")),
    ],
)
def test_labels_are_taken_from_the_rows(
    tiny_base: Path, tmp_path: Path, rows: list[Any], names: tuple[str, ...]
) -> None:
    data = load(tmp_path, tiny_base, rows)
    assert data.labels is not None
    assert data.labels.names == names
    assert not data.labels.several


def test_labels_of_the_configuration_are_names_or_ids(tiny_base: Path, tmp_path: Path) -> None:
    data = load(tmp_path, tiny_base, classes("no", 1, "2", "yes"), "task.labels=[yes, no, perhaps]")
    assert data.labels is not None
    assert data.labels.names == ("yes", "no", "perhaps")
    assert [row.classes for row in data.train] == [(1,), (1,), (2,), (0,)]


def test_lists_are_any_number_of_labels(tiny_base: Path, tmp_path: Path) -> None:
    data = load(tmp_path, tiny_base, classes(["b", "a"], [], ["c"], '["a", "c"]'))
    assert data.labels is not None
    assert data.labels.several
    assert [set(row.classes) for row in data.train] == [{0, 1}, set(), {2}, {0, 2}]


def test_numbers_and_pairs(tiny_base: Path, tmp_path: Path) -> None:
    rows = [{"sentence1": "a", "sentence2": "b", "score": "0.5"}, {"sentence1": "c", "sentence2": "d", "score": 2}]
    assert [row.number for row in load(tmp_path, tiny_base, rows, task="regression").train] == [0.5, 2.0]
    pairs = [{"anchor": "a", "positive": "b", "negatives": ["c", "d"]}, {"anchor": "e", "positive": "f"}]
    data = load(tmp_path, tiny_base, pairs, task="embedding")
    assert [len(row.texts) for row in data.train] == [4, 2]
    assert data.learned == "embedding"
    scored = [{"sentence1": "a", "sentence2": "b", "score": 0.5}, {"sentence1": "c", "sentence2": "d", "score": -1}]
    assert load(tmp_path, tiny_base, scored, task="embedding").learned == "similarity"


@pytest.mark.parametrize(
    ("rows", "overrides", "message"),
    [
        (classes("a", "a"), (), "all rows have the one label 'a': there is nothing to tell apart"),
        (classes("a", "bb"), ("task.labels=[a, b]",), "line 2: 'label': unknown label 'bb'; did you mean 'b'"),
        (classes("a", 7), ("task.labels=[a, b]",), "line 2: 'label': unknown label '7'; known are 'a', 'b'"),
        (classes("a", 0.37), (), "'label' is 0.37, which is no label; numbers are learned by task: regression"),
        (classes("a", ["b"]), (), "'label' is a list: set task.multi_label to true"),
        (classes("a", {"b": 1}), (), "'label' must be a label, not an object"),
        (classes("a", " "), (), "'label' is an empty label"),
        ([{"text": "a", "kind": "b"}], (), "has none of the columns label, labels, .*; name yours in task.columns"),
        ([{"words": "a", "label": "b"}], (), "has none of the columns text, .*; name yours in data.columns.text"),
        ([{"text": 5, "label": "b"}], (), "'text' must be text, not a number"),
        (classes("a", "b"), ("task.columns.label=lable",), "has no column 'lable'"),
    ],
)
def test_what_is_wrong_is_said(
    tiny_base: Path, tmp_path: Path, rows: list[Any], overrides: tuple[str, ...], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        load(tmp_path, tiny_base, rows, *overrides)


@pytest.mark.parametrize("value", ["much", True, float("nan"), None, [1]])
def test_a_target_that_is_no_number(tiny_base: Path, tmp_path: Path, value: Any) -> None:
    with pytest.raises(DataError, match=r"must be a finite number|is null"):
        load(tmp_path, tiny_base, [{"text": "a", "score": value}], task="regression")


def test_a_score_that_is_no_cosine(tiny_base: Path, tmp_path: Path) -> None:
    rows = [{"sentence1": "a", "sentence2": "b", "score": 4.5}]
    with pytest.raises(DataError, match=r"is 4\.5, and the cosine of two texts goes from -1 to 1"):
        load(tmp_path, tiny_base, rows, task="embedding")


def test_rows_left_out_and_doubts_are_counted(tiny_base: Path, tmp_path: Path) -> None:
    rows = [
        *classes("a", "b", "c"), {"text": " ", "label": "a"}, {"text": "x", "label": None},
        {"text": "text 0", "label": "b"}, {"text": "text 1", "label": "b"},
    ]  # fmt: skip
    other = tmp_path / "other.jsonl"
    other.write_text('{"text": "text 2", "label": "c"}\n{"text": "new", "label": "a"}\n')
    data = load(tmp_path, tiny_base, rows, f"data.validation={other}", "task.labels=[a, b, c, d]")
    assert data.dropped == {"empty text": 1, "'label' is null": 1}
    notes = "\n".join(data.notes)
    assert "one of 4 labels; 1 to 3 rows of a label are trained on" in notes
    assert "warning: no row to train on has the label 'd'" in notes
    assert "repeated: 1 row" in notes
    assert "warning: 1 row to train on want of a text what another row does not" in notes
    assert "warning: 1 row to validate on, the text of which is trained on as well" in notes


def test_a_label_that_only_the_rows_held_back_have(tiny_base: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text('{"text": "new", "label": "z"}\n')
    with pytest.raises(DataError, match=r"other\.jsonl line 1: unknown label 'z'; known are 'a', 'b'"):
        load(tmp_path, tiny_base, classes("a", "b"), f"data.validation={other}")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("preference=dpo",), "task: classification has no answers to compare"),
        (("method=full",), "method.type: classification trains an adapter"),
        (("exact_match_rows=2",), "training.exact_match_rows: classification has no responses"),
        (("packing=true",), "training.packing: classification reads whole rows"),
        (("too_long=split",), "data.too_long: split is not for classification"),
        (("data.columns.response=label",), "what is wanted of a text is in task.columns"),
        (("task.labels=[a, a]",), "task.labels: name at least two labels"),
        (("task.labels=[a, b]", "task.multi_label=true", "label_smoothing=0.1"), "training.label_smoothing: only for"),
        (("task=clasification",), "task.type: unknown task 'clasification'; choose from generation, classification"),
        (("task=embedding", "batch_size=1"), "training.batch_size: embedding compares the rows of a batch"),
        (("task.poling=last",), "unknown key 'task.poling'"),
    ],
)
def test_settings_that_do_not_go_together(
    tiny_base: Path, tmp_path: Path, overrides: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, tiny_base, classes("a", "b"), *overrides)


def test_generation_is_no_task_of_its_own(tiny_base: Path, tmp_path: Path) -> None:
    assert make_config(tmp_path, tiny_base, "task=generation").task is None
