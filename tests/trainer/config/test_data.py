"""Paths of a configuration: made absolute, told from hub ids, and taken as they are written."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.trainer.config.test_loading import error_of, file
from trainer.config.data import HUB, absolute, complete_path, is_template_file
from trainer.config.loading import load_config

__all__ = ["file"]  # a fixture


def test_paths_become_absolute_so_that_the_copy_stands_for_itself(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config(file, ["validation=held.jsonl"], {})
    assert config.output == str(tmp_path / "out")
    assert config.data.path == str(tmp_path / "rows.jsonl")
    assert config.data.validation == str(tmp_path / "held.jsonl")


def test_paths_may_look_like_yaml(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("2024-05-01", "x #2", "12"):
        assert load_config(file, [f"data={name}"], {}).data.path == str(tmp_path / name)
        assert load_config(file, [f"output={name}", f"data.path={name}"], {}).output == str(tmp_path / name)
    assert load_config(file, ["data.path=[a.jsonl, b.jsonl]"], {}).data.paths == [
        str(tmp_path / "a.jsonl"),
        str(tmp_path / "b.jsonl"),
    ]


@pytest.mark.parametrize("path", ["~nobody-of-this-name/x", "x" * 300])
def test_paths_that_cannot_be_are_one_line(file: Path, path: str) -> None:
    assert error_of(file, f"data.path={path}")


def test_an_owner_and_name_that_is_no_path_is_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert complete_path("owner/name@main#test") == f"{HUB}owner/name@main#test"
    assert complete_path("owner/name", hub=False) == str(tmp_path / "owner" / "name")
    assert complete_path("owner/rows.jsonl") == str(tmp_path / "owner" / "rows.jsonl")
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert complete_path("owner/name") == absolute("owner/name")
    assert complete_path(f"{HUB}owner/name") == f"{HUB}owner/name"


def test_a_template_is_a_file_by_its_ending() -> None:
    assert is_template_file("mine.jinja")
    assert not is_template_file("chatml")
    assert not is_template_file("{{ messages }}.jinja")
