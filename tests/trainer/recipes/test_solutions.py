"""Sets whose answer is a query, a number or a program."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from tests.trainer.recipes.test_recipes import FILES, lines, rows_of, write
from trainer.errors import DataError


def test_geography_fills_variables_and_splits_by_question_or_query(tmp_path: Path) -> None:
    write(tmp_path, FILES["geography"])
    expected = {
        "prompt": "Answer with a SQL query: how big is como or garda",
        "response": 'SELECT SIZE FROM LAKE WHERE NAME = "como" OR NAME = "garda" ;',
        "sqlite": str(tmp_path / "g.sqlite"),
    }
    assert rows_of("geography", tmp_path) == [expected]
    assert rows_of("geography_query", tmp_path) == []
    assert rows_of("geography_query", tmp_path, "test") == [expected]


def test_humaneval_reads_packed_files_and_has_nothing_to_train_on(tmp_path: Path) -> None:
    row = {
        "prompt": "def f():\n",
        "canonical_solution": "    return 1\n",
        "entry_point": "f",
        "test": "assert f() == 1",
    }
    (tmp_path / "HumanEval.jsonl.gz").write_bytes(gzip.compress(lines(row).encode()))
    assert rows_of("humaneval", tmp_path, "test")[0]["response"] == "    return 1\n"
    with pytest.raises(DataError, match="recipe humaneval has no train rows; it has test"):
        rows_of("humaneval", tmp_path)
