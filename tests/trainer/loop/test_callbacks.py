"""Interrupting a real training process, and going on with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.trainer.forked import ForkedCommand
from tests.trainer.support import DEADLINE, make_config, wait_for_step
from trainer.config.loading import dump_config
from trainer.loop.checkpoint import checkpoints
from trainer.loop.records import read_metrics


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "hotswap", "train", str(folder / "c.yaml"), "--quiet", *arguments]
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.parametrize(
    ("signum", "eval_steps"), [(signal.SIGINT, 600), pytest.param(signal.SIGTERM, 1, marks=pytest.mark.slow)]
)
def test_an_interrupted_run_saves_itself_and_goes_on_exactly(
    tiny_base: Path, tmp_path: Path, signum: signal.Signals, eval_steps: int
) -> None:
    options = ["max_steps=600", "save_steps=600", f"eval_steps={eval_steps}", "gradient_accumulation=2"]
    config = make_config(tmp_path, tiny_base, "method=prefix", *options)
    (tmp_path / "c.yaml").write_text(dump_config(config), encoding="utf-8")
    metrics = tmp_path / "run" / "metrics.jsonl"

    process = start(tmp_path)
    wait_for_step(metrics, 3, process)
    process.send_signal(signum)
    out, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 128 + signum, err
    checkpoint = checkpoints(tmp_path / "run")[-1]
    step = int(checkpoint.name.removeprefix("checkpoint-"))
    assert 3 <= step < 600
    assert out == f"stopped at step {step}; go on with: hotswap train {tmp_path}/run/config.yaml --resume\n"
    assert "stopping after this step" in err
    assert "Traceback" not in err
    assert not (tmp_path / "run" / "adapter").exists()
    before = {record["step"]: record["loss"] for record in read_metrics(metrics) if "loss" in record}
    assert list(before) == list(range(1, step + 1))
    evaluated = [record["step"] for record in read_metrics(metrics) if "eval_loss" in record]
    assert evaluated == list(range(eval_steps, step + 1, eval_steps))  # also after the step that was interrupted

    again = ForkedCommand(tmp_path, "train", str(tmp_path / "c.yaml"), "--quiet", "--resume")
    wait_for_step(metrics, step + 2, again)
    again.send_signal(signal.SIGINT)
    again.communicate(timeout=DEADLINE)
    after = {record["step"]: record["loss"] for record in read_metrics(metrics) if "loss" in record}
    assert {known: after[known] for known in before} == before
    assert len(after) >= step + 2
