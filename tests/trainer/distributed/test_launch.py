"""``hotswap train --nproc 2``: the command, its signals, its errors, and that it leaves no process behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import psutil
import pytest

from tests.trainer.support import DEADLINE, make_config, wait_for_step
from trainer.config.loading import dump_config
from trainer.config.schema import TrainConfig
from trainer.loop.records import read_metrics
from trainer.run import train


def start(config: TrainConfig, file: Path, *arguments: str) -> subprocess.Popen[str]:
    file.write_text(dump_config(config), encoding="utf-8")
    command = [sys.executable, "-m", "hotswap", "train", str(file), "--nproc", "2", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def workers(process: subprocess.Popen[str]) -> list[psutil.Process]:
    children: list[psutil.Process] = psutil.Process(process.pid).children()
    return children


def assert_gone(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=20)
    assert not alive


def losses(output: Path) -> dict[int, float]:
    return {record["step"]: record["loss"] for record in read_metrics(output / "metrics.jsonl") if "loss" in record}


@pytest.mark.slow
def test_a_signal_saves_one_checkpoint_from_which_one_process_goes_on(tiny_base: Path, tmp_path: Path) -> None:
    options = ["method=lora", "dropout=0", "max_steps=60", "save_steps=60", "eval_steps=60"]
    config = make_config(tmp_path, tiny_base, *options)
    process = start(config, tmp_path / "c.yaml", "--quiet")
    wait_for_step(tmp_path / "run" / "metrics.jsonl", 2, process)
    children = workers(process)
    assert len(children) == 2
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 128 + signal.SIGTERM, err
    assert_gone(children)
    saved = [path.name for path in (tmp_path / "run").glob("checkpoint-*")]
    assert len(saved) == 1
    step = int(saved[0].removeprefix("checkpoint-"))
    assert step < 60
    assert out == f"stopped at step {step}; go on with: hotswap train {tmp_path}/run/config.yaml --resume\n"
    assert err.strip() == "stopping after this step, with a checkpoint (once more to stop at once)"

    whole = msgspec.structs.replace(config, output=str(tmp_path / "whole"))
    train(whole)
    train(config, resume=True)
    expected = losses(tmp_path / "whole")
    assert losses(tmp_path / "run") == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_a_launcher_that_is_killed_takes_its_processes_along(tiny_base: Path, tmp_path: Path) -> None:
    process = start(make_config(tmp_path, tiny_base, "max_steps=100000"), tmp_path / "c.yaml", "--quiet")
    wait_for_step(tmp_path / "run" / "metrics.jsonl", 1, process)
    children = workers(process)
    process.kill()
    process.communicate(timeout=DEADLINE)
    assert_gone(children)


@pytest.mark.slow
def test_a_process_that_dies_ends_all_with_one_line(tiny_base: Path, tmp_path: Path) -> None:
    process = start(make_config(tmp_path, tiny_base, "max_steps=100000"), tmp_path / "c.yaml", "--quiet")
    wait_for_step(tmp_path / "run" / "metrics.jsonl", 1, process)
    children = workers(process)
    second = max(children, key=lambda child: child.environ()["RANK"])
    second.kill()
    began = time.monotonic()
    out, err = process.communicate(timeout=DEADLINE)
    assert time.monotonic() - began < 20
    assert process.returncode == 1
    assert (out, err) == ("", "hotswap: process 1 of 2 was ended by SIGKILL; the machine may be out of memory\n")
    assert_gone(children)


@pytest.mark.slow
def test_mistakes_are_one_line(tiny_base: Path, tmp_path: Path) -> None:
    config = make_config(tmp_path, tiny_base, rows=["no row"])
    process = start(config, tmp_path / "c.yaml")
    _, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 1
    assert err.startswith("hotswap: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--batch_size", "5"], "training.batch_size: 5 rows cannot be divided among 2 processes"),
        (["--strategy", "fsdp", "--method", "adalora"], "training.strategy: adalora needs its whole parameters"),
        (["--strategy", "fsdp", "--quantize", "nf4"], "training.strategy: fsdp cannot divide quantized weights"),
        (["--strategy", "fsdp", "--optimizer", "adamw_8bit"], "training.optimizer: adamw_8bit does not work"),
    ],
)
def test_what_cannot_be_divided_is_refused_before_anything_starts(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    from trainer.commands.train import train as command

    (tmp_path / "c.yaml").write_text(dump_config(make_config(tmp_path, tiny_base)), encoding="utf-8")
    assert command([str(tmp_path / "c.yaml"), "--nproc", "2", *arguments]) == 1
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()
