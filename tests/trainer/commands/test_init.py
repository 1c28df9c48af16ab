"""``hotswap init``: questions on a real terminal and through a pipe, and the file that comes of the answers."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hotswap import cli
from tests.trainer.support import colour_rows, write_jsonl
from trainer.config.loading import load_config
from trainer.config.methods import LoraMethod, PrefixMethod
from trainer.config.preference import DpoPreference
from trainer.config.task import ClassificationTask


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_jsonl(tmp_path / "colours.jsonl", colour_rows())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def answer(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))


def test_answers_become_a_file_that_trains(
    folder: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answer(monkeypatch, "gone.jsonl", "", "colours.jsonl", "/nowhere", str(tiny_base), "lorra", "prefix", "")
    assert cli.main(["init", "--steps", "0", "threads=1"]) == 0
    out = capsys.readouterr().out
    for words in ("there is no data file", "an answer is needed", "no base model '/nowhere'", "'lorra' is no method"):
        assert words in out
    for words in (
        "48 rows of the shape prompt_response",
        "suggested: data.max_length=64",
        "parameters trainable",
        "peak",
    ):
        assert words in out
    assert out.endswith("written: run.yaml; train with: hotswap train run.yaml\n")
    config = load_config(folder / "run.yaml", (), {})
    assert (config.method, config.output, config.training.threads) == (PrefixMethod(), str(folder / "runs/colours"), 1)
    assert cli.main(["train", "run.yaml", "max_steps=1", "--quiet"]) == 0


def test_flags_are_not_asked_for(folder: Path, tiny_base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["init", "new.yaml", "--train_file", "colours.jsonl", "--base", str(tiny_base), "--yes", "--steps", "0"]
    assert cli.main([*line, "--per_device_train_batch_size", "2"]) == 0
    config = load_config(folder / "new.yaml", (), {})
    assert (config.method, config.training.batch_size) == (LoraMethod(), 2)
    assert cli.main(line) == 1
    assert "new.yaml is there already" in capsys.readouterr().err
    assert cli.main(["train", "--wizard", *line[1:], "--overwrite", "--method", "ia3"]) == 0
    assert load_config(folder / "new.yaml", (), {}).method.KIND == "ia3"


def test_pairs_are_trained_as_preferences(folder: Path, tiny_base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_jsonl(folder / "pairs.jsonl", [{"prompt": f"p{i}", "chosen": "yes", "rejected": "no"} for i in range(24)])
    assert cli.main(["init", "--data", "pairs.jsonl", "--base", str(tiny_base), "--yes"]) == 0
    assert "preference training: dpo" in capsys.readouterr().out
    assert isinstance(load_config(folder / "run.yaml", (), {}).preference, DpoPreference)


@pytest.mark.parametrize(
    ("row", "task"),
    [
        ({"tokens": ["Ada", "Lovelace"], "ner_tags": ["B-PER", "O"]}, "token-classification"),
        ({"text": "Ada spoke", "entities": [[0, 3, "PER"]]}, "token-classification"),
        ({"anchor": "a", "positive": "b"}, "embedding"),
    ],
)
def test_rows_that_are_read_are_known_by_their_columns(
    folder: Path, tiny_base: Path, capsys: pytest.CaptureFixture[str], row: dict[str, Any], task: str
) -> None:
    write_jsonl(folder / "rows.jsonl", [row] * 4)
    assert cli.main(["init", "--data", "rows.jsonl", "--base", str(tiny_base), "--yes"]) == 0
    out = capsys.readouterr().out
    assert f"the rows are for the task {task}" in out
    assert "hotswap plan knows runs that learn to write answers only" in out
    text = (folder / "run.yaml").read_text()
    assert f"task:\n  type: {task}  #" in text
    assert "null" not in text
    found = load_config(folder / "run.yaml", (), {})
    assert found.reading
    assert (found.reading.KIND, found.training.batch_size > 1) == (task, True)


def test_a_task_may_be_given(folder: Path, tiny_base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_jsonl(folder / "rows.jsonl", [{"text": "a", "label": i % 2} for i in range(4)])
    line = ["init", "--data", "rows.jsonl", "--base", str(tiny_base), "--yes", "task=classification"]
    assert cli.main([*line, "task.class_weights=balanced"]) == 0
    assert "one of 2 labels" in capsys.readouterr().out
    assert load_config(folder / "run.yaml", (), {}).task == ClassificationTask(class_weights="balanced")
    assert cli.main(["plan", "run.yaml", "--steps", "0"]) == 0
    assert capsys.readouterr().out.startswith("classification of lora on tiny:")


def test_no_answer_is_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answer(monkeypatch, "colours.jsonl")
    assert cli.main(["init"]) == 1
    assert (
        capsys.readouterr().err
        == "hotswap: there is no answer to 'base model': give --base, or --yes for what is usual\n"
    )
    monkeypatch.setattr(sys, "stdin", None)
    assert cli.main(["init"]) == 1
    assert "give --data" in capsys.readouterr().err
    assert cli.main(["init", "--yes"]) == 1
    assert cli.main(["init", "--data", "colours.jsonl", "epocs=1", "batch_size=0"]) == 1
    assert "unknown key 'epocs'" in capsys.readouterr().err
    assert not (folder / "run.yaml").exists()


@pytest.mark.slow
@pytest.mark.long
def test_it_asks_on_a_terminal(folder: Path, tiny_base: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "hotswap", "init", "--steps", "1"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(command, stdin=theirs, stdout=subprocess.PIPE, text=True, env=environment, cwd=folder)
    os.close(theirs)
    os.write(ours, f"colours.jsonl\n{tiny_base}\n\n\n".encode())
    out, _ = process.communicate(timeout=100)
    os.close(ours)
    assert process.returncode == 0, out
    assert "method [lora]: " in out
    assert "measured: 1 steps" in out
    assert load_config(folder / "run.yaml", (), {}).base == str(tiny_base)
