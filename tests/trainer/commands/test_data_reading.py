"""``hotswap data check`` of rows that are read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.trainer.pooling.support import class_rows
from tests.trainer.support import WORDS, write_jsonl
from trainer.commands.data import main


def test_check_counts_the_rows_of_each_class(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write_jsonl(tmp_path / "rows.jsonl", [*class_rows(), {"text": "", "label": "red"}])
    options = ["task=classification", f"base={tiny_base}", "data.validation=8"]
    assert main(["check", str(rows), *options]) == 0
    said = capsys.readouterr().out
    assert "one of 6 labels" in said
    assert "left out 1 row: empty text" in said
    assert "this data can be trained on: classification" in said
    assert main(["check", str(rows), *options, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert sorted(report["labels"]) == sorted(WORDS)
    assert sum(report["labels"].values()) == report["train"] == 40
    assert main(["check", str(rows), *options, "task.labels=[red, blue]"]) == 1
    assert "unknown label 'green'" in capsys.readouterr().err
    assert main(["preview", str(rows), *options]) == 1
    assert "learns no words to mark" in capsys.readouterr().err
