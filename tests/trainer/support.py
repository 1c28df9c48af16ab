"""What the trainer's tests share: small data files and configurations."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

from tests.trainer.forked import ForkedCommand
from trainer.config.loading import load_config
from trainer.config.schema import TrainConfig
from trainer.loop.records import read_metrics
from trainer.loop.session import RunResult

WORDS = ("red", "blue", "green", "black", "white", "grey")
DEADLINE = 120.0  # seconds for what takes a few


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    """Write ``rows`` one a line; strings are written as they are, so that lines may be broken on purpose."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def colour_rows(count: int = 48) -> list[dict[str, str]]:
    """A task that a tiny model learns in a few steps: say the colour's first letter, twice."""
    words = [WORDS[i % len(WORDS)] for i in range(count)]
    return [{"prompt": f"{'very ' * (i % 3)}{word}", "response": word[0] * 2} for i, word in enumerate(words)]


def contradiction(folder: Path) -> str:
    """An option: validation on other answers than training's. Its loss falls for some steps, then rises for good.

    At a learning rate of 0.3 the turn is at step 4, by a margin that no CPU's rounding reaches.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"prompt": word, "response": "xyz"} for word in WORDS]
    return f"data.validation={write_jsonl(folder / 'other.jsonl', rows)}"


def make_config(folder: Path, base: Path, *overrides: str, rows: list[Any] | None = None) -> TrainConfig:
    """A configuration that trains ``base`` for a few steps on ``rows`` (the colours when None)."""
    folder.mkdir(parents=True, exist_ok=True)
    data = write_jsonl(folder / "data.jsonl", colour_rows() if rows is None else rows)
    file = folder / "config-in.yaml"
    file.write_text(
        f"base: {base}\noutput: {folder / 'run'}\ndata: {{path: {data}, validation: 8}}\n"
        "training: {max_steps: 8, batch_size: 4, save_steps: 4, eval_steps: 4, threads: 1, dtype: float32}\n",
        encoding="utf-8",
    )
    return load_config(file, overrides, {})


def losses(result: RunResult | TrainConfig, key: str = "loss") -> dict[int, float]:
    """What the run logged as ``key``, by step."""
    records = read_metrics(Path(result.output) / "metrics.jsonl")
    return {record["step"]: record[key] for record in records if key in record}


def wait_for_step(metrics: Path, step: int, process: subprocess.Popen[str] | ForkedCommand) -> None:
    """Until ``process``, a training run, has logged ``step``."""
    end = time.monotonic() + DEADLINE
    while not any(record["step"] >= step for record in read_metrics(metrics)):
        assert process.poll() is None, process.communicate(timeout=DEADLINE)
        assert time.monotonic() < end
        time.sleep(0.01)
