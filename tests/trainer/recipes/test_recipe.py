"""What every recipe has: rows held back, files read with their lines."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.trainer.recipes.test_recipes import lines, rows_of, write
from trainer.errors import DataError


def test_sets_without_a_test_split_hold_back_the_same_tenth_every_time(tmp_path: Path) -> None:
    content = lines(*({"question": f"q{i}", "context": "c", "answer": f"a{i}"} for i in range(50)))
    write(tmp_path, {"sqlqa.jsonl": content})
    train, test = rows_of("sqlqa", tmp_path), rows_of("sqlqa", tmp_path, "test")
    assert (len(train), len(test)) == (45, 5)
    assert sorted(row["response"] for row in [*train, *test]) == sorted(f"a{i}" for i in range(50))
    assert rows_of("sqlqa", tmp_path, "test") == test


def test_bytes_that_are_not_utf8_are_named_with_the_line(tmp_path: Path) -> None:
    (tmp_path / "sqlqa.jsonl").write_bytes(b'{"a": 1}\n\xff\n')
    with pytest.raises(DataError, match=r"sqlqa.jsonl line 2 is not UTF-8"):
        rows_of("sqlqa", tmp_path)
    (tmp_path / "HumanEval.jsonl.gz").write_bytes(b"not packed")
    with pytest.raises(DataError, match=r"HumanEval.jsonl.gz cannot be read"):
        rows_of("humaneval", tmp_path, "test")


def test_a_path_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no folder; recipe snips reads a folder"):
        rows_of("snips", tmp_path / "absent")
