"""Cards of data sets: which files their configurations and splits are, in the forms that the hub documents."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer.data.dataset_files import configurations, files_of_data_set, files_of_folder
from trainer.errors import DataError

NAMES = ["README.md", "data/a.csv", "data/b.csv", "data/deep/c.csv", "holdout/h.csv", "en/train.csv", "en/dev.csv"]
SPLITS = """\
---
license: mit
configs:
- config_name: main
  default: true
  data_files:
  - split: train
    path: ["data/a.csv", "data/b*"]
  - split: validation
    path: holdout/*.csv
- config_name: english
  data_dir: en
- config_name: everything
  data_files: "**/*.csv"
- config_name: inside
  data_dir: data
  data_files: {pattern}
---
# A data set
configs: this is text
"""


@pytest.mark.parametrize(
    ("split", "chosen"),
    [
        (None, ["data/a.csv", "data/b.csv"]),
        ("dev", ["holdout/h.csv"]),
        ("main/train", ["data/a.csv", "data/b.csv"]),
        ("english/train", ["en/train.csv"]),
        ("english/validation", ["en/dev.csv"]),
        ("everything/train", sorted(set(NAMES) - {"README.md"})),
        ("inside/train", ["data/a.csv", "data/b.csv"]),
        ("en/dev", ["en/dev.csv"]),  # no configuration: a folder
    ],
)  # fmt: skip
def test_configurations_choose_their_files(split: str | None, chosen: list[str]) -> None:
    assert files_of_data_set(NAMES, SPLITS.format(pattern='"*.csv"'), split, "it") == chosen


@pytest.mark.parametrize(
    ("card", "split", "words"),
    [
        (SPLITS, "main/test", "it has no split 'main/test' (found: train, validation); name one with data.split"),
        (SPLITS, "inside/train", "it has no file none.csv, which its README.md names for train"),
        (
            "---\nconfigs:\n- config_name: a\n- config_name: b\n---\n",
            None,
            "it has several configurations (a, b); name one, for example data.split: a/train",
        ),
    ],
)
def test_what_cannot_be_chosen_is_said(card: str, split: str | None, words: str) -> None:
    with pytest.raises(DataError) as caught:
        files_of_data_set(NAMES, card.replace("{pattern}", "none.csv"), split, "it")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "card",
    [
        "",
        "# title",
        "---\nlicense: mit\n---\n",
        "---\n: [\n---\n",
        "---\nconfigs: 3\n---\n",
        "---\n- a\n---\n",
        "---\ndate: 2020-13-45\n---\n",
    ],
)
def test_cards_that_say_nothing_leave_it_to_the_names(card: str) -> None:
    assert configurations(card) == []
    assert files_of_data_set(["train.csv", "test.csv"], card, "test", "it") == ["test.csv"]


def test_splits_of_like_names_and_formats_are_kept_apart() -> None:
    card = "---\nconfigs:\n- data_files:\n  - {split: dev, path: a*}\n  - {split: validation, path: b*}\n---\n"
    names = ["a.csv", "a.jsonl", "b.csv"]
    assert files_of_data_set(names, card, "dev", "it") == ["a.jsonl"]
    assert files_of_data_set(names, card, "validation", "it") == ["b.csv"]
    with pytest.raises(DataError, match=r"the README.md of it names \*\*\.csv: Invalid pattern"):
        files_of_data_set(names, '---\nconfigs:\n- data_files: "**.csv"\n---\n', None, "it")


def test_a_folder_may_have_a_card(tmp_path: Path) -> None:
    for name in ("one.csv", "two.csv"):
        (tmp_path / name).write_text("prompt,response\nx,y\n", encoding="utf-8")
    (tmp_path / "README.md").write_text("---\nconfigs:\n- data_files: two.csv\n---\n", encoding="utf-8")
    assert files_of_folder(tmp_path, None, "it") == [tmp_path / "two.csv"]
