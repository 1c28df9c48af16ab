"""Which files a path means: files, lists, folders, patterns, splits in names, recipes."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.support import write_jsonl
from trainer.config.data import DataConfig, complete_data
from trainer.data.dataset_files import files_of_split
from trainer.data.sources import FileSource, find_source
from trainer.errors import DataError
from trainer.recipes.recipe import Split


def prompts(part: Split = "train", **config: Any) -> list[str]:
    source = find_source(complete_data(DataConfig(**config)), part)
    assert source is not None
    return [row.values["prompt"] for row in source.rows()]


def rows(name: str) -> list[dict[str, str]]:
    return [{"prompt": name, "response": "x"}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("train-0.jsonl", "train-1.jsonl", "validation.jsonl", "test.jsonl", "README.md", ".hidden.jsonl"):
        write_jsonl(tmp_path / name, rows(name))
    return tmp_path


def test_paths_are_files_lists_folders_and_patterns(folder: Path) -> None:
    one = str(folder / "test.jsonl")
    assert prompts(path=one) == ["test.jsonl"]
    assert prompts(path=[one, str(folder / "train-1.jsonl")]) == ["test.jsonl", "train-1.jsonl"]
    assert prompts(path=str(folder)) == ["train-0.jsonl", "train-1.jsonl"]
    assert prompts(path=str(folder), split="dev") == ["validation.jsonl"]
    assert prompts(path=str(folder / "t*.jsonl")) == ["test.jsonl", "train-0.jsonl", "train-1.jsonl"]


def test_validation_and_test_may_be_the_splits_that_the_set_has(folder: Path) -> None:
    assert prompts("validation", path=str(folder), validation="split") == ["validation.jsonl"]
    assert prompts("test", path=str(folder), test="split") == ["test.jsonl"]
    assert prompts("test", path=str(folder), test=str(folder / "train-0.jsonl")) == ["train-0.jsonl"]
    assert find_source(DataConfig(path=str(folder)), "validation") is None
    assert find_source(DataConfig(path=str(folder)), "test") is None


def test_the_hash_is_over_the_bytes_of_all_files(folder: Path) -> None:
    single = find_source(DataConfig(path=str(folder / "test.jsonl")), "train")
    assert single is not None
    assert single.sha256 == hashlib.sha256((folder / "test.jsonl").read_bytes()).hexdigest()
    both = FileSource("x", [folder / "train-0.jsonl", folder / "train-1.jsonl"], "auto", None)
    before = both.sha256
    write_jsonl(folder / "train-1.jsonl", rows("other"))
    assert FileSource("x", both.files, "auto", None).sha256 != before


@pytest.mark.parametrize(
    ("names", "split", "chosen"),
    [
        (["data/train-0-of-2.parquet", "data/train-1-of-2.parquet", "data/test-0.parquet"], None, [0, 1]),
        (["train.json", "train.parquet", "README.md", "dataset_infos.yaml"], None, [1]),
        (["rows.csv"], None, [0]),
        (["dev.jsonl", "train.jsonl"], "validation", [0]),
        (["main/train.parquet", "socratic/train.parquet"], "socratic/train", [1]),
        (["en/test/0.jsonl", "en/train/0.jsonl"], "en/test/test", [0]),
        (["latest.jsonl", "trainer.jsonl"], None, [0, 1]),
    ],
)  # fmt: skip
def test_splits_are_found_in_names(names: list[str], split: str | None, chosen: list[int]) -> None:
    assert files_of_split(names, split, "it") == [names[i] for i in chosen]


@pytest.mark.parametrize(
    ("names", "split", "words"),
    [
        (["README.md", "image.png"], None, "it has no data files (.jsonl, "),
        (["test.csv", "dev.csv"], None, "it has no split 'train' (found: test, validation); name one with data.split"),
        (
            ["main/train.parquet", "socratic/train.parquet"],
            None,
            "has several configurations (main, socratic); name one",
        ),
    ],
)
def test_what_cannot_be_chosen_is_said(names: list[str], split: str | None, words: str) -> None:
    with pytest.raises(DataError) as caught:
        files_of_split(names, split, "it")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"path": "none/rows.jsonl"}, "there is no data file "),
        ({"path": "none*.jsonl"}, "no file fits the pattern "),
        ({"path": "x", "recipe": "snip"}, "data.recipe: unknown recipe 'snip'; choose from advertisegen, "),
        (
            {"path": ".", "recipe": "gsm8k", "validation": "split"},
            "recipe gsm8k has no validation rows; it has train, test",
        ),
    ],
)
def test_sources_that_are_not_there_are_said(tmp_path: Path, config: dict[str, Any], words: str) -> None:
    part: Split = "validation" if "validation" in config else "train"
    with pytest.raises(DataError) as caught:
        prompts(part, **{**config, "path": str(tmp_path / config["path"])})
    assert words in str(caught.value)


def test_a_recipe_makes_the_rows_of_a_folder(tmp_path: Path) -> None:
    for name in ("train", "test"):
        write_jsonl(tmp_path / f"{name}.jsonl", [{"question": f"{name}?", "answer": "1 + 1\n#### 2"}])
    config: dict[str, Any] = {"path": str(tmp_path), "recipe": "gsm8k"}
    assert "train?" in prompts(**config)[0]
    assert "test?" in prompts("test", **config)[0]  # without being named
    source = find_source(DataConfig(**config), "train")
    assert source is not None
    assert len(source.sha256) == 64
    assert source.name == "gsm8k (train)"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("hub:owner/name@v1#test", "hub:owner/name@v1#test"),
        ("owner/name", "hub:owner/name"),
        ("owner/na.me@main#en/train", "hub:owner/na.me@main#en/train"),
        ("owner/name.jsonl", "/owner/name.jsonl"),
        ("./owner/name", "/owner/name"),
        ("a/b/c", "/a/b/c"),
        ("here/rows", "/here/rows"),
    ],
)
def test_names_of_the_hub_are_told_from_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, expected: str
) -> None:
    (tmp_path / "here" / "rows").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    full = expected if expected.startswith("hub:") else str(tmp_path) + expected
    assert complete_data(DataConfig(path=path)).path == full
    assert complete_data(DataConfig(path=[path, path], validation=path, test=path)) == DataConfig(
        path=[full, full], validation=full, test=full
    )


def test_a_file_without_splits_has_none(folder: Path, tmp_path: Path) -> None:
    lines = write_jsonl(tmp_path / "lines.json", rows("a"))
    array = tmp_path / "array.json"
    array.write_text('[{"prompt": "a", "response": "x"}]')
    splits = tmp_path / "splits.json"
    splits.write_text('{"train": [{"prompt": "a"}], "validation": [{"prompt": "b"}]}')
    assert prompts("validation", path=str(splits), split="train", validation="split") == ["b"]
    own = tmp_path / "own.json"
    own.write_text('{"train_sft": [{"prompt": "a"}], "validation": [{"prompt": "b"}]}')
    assert prompts("validation", path=str(own), split="train_sft", validation="split") == ["b"]
    both = [str(folder), str(splits)]
    assert prompts("validation", path=both, validation="split") == ["validation.jsonl", "b"]
    for path in (str(folder / "test.jsonl"), str(folder / "t*.jsonl"), str(lines), str(array)):
        parts: tuple[Split, ...] = ("validation", "test")
        for part in parts:
            with pytest.raises(DataError, match=f"data.{part}: split is for folders"):
                prompts(part, path=path, **{part: "split"})
