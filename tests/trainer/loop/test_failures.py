"""Memory and disk that run out, in real processes with real limits: one line, and nothing half-written."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.factory import make_base
from tests.trainer.support import make_config
from trainer.config.loading import dump_config
from trainer.config.schema import TrainConfig
from trainer.errors import CheckpointError, TrainingError
from trainer.loop.checkpoint import checkpoints
from trainer.loop.failures import explained
from trainer.loop.records import read_metrics
from trainer.run import train

_RUN = """\
import resource, sys
from trainer.commands.train import train
import trainer.run
{limit}
sys.exit(train(sys.argv[1:]))
"""


def run(config: TrainConfig, folder: Path, limit: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """``hotswap train`` in a process that sets ``limit`` once everything is imported."""
    (folder / "c.yaml").write_text(dump_config(config), encoding="utf-8")
    command = [sys.executable, "-c", _RUN.format(limit=limit), str(folder / "c.yaml"), "--quiet", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)


def files_below(size: int) -> str:
    return f"resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))"


def losses_of(output: Path) -> list[float]:
    return [record["loss"] for record in read_metrics(output / "metrics.jsonl") if "loss" in record]


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 1, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]


def test_a_checkpoint_that_does_not_fit_leaves_nothing_and_the_run_goes_on_once_it_does(
    tiny_base: Path, tmp_path: Path
) -> None:
    config = make_config(tmp_path, tiny_base)
    expected = losses_of(train(config).output)
    config = make_config(tmp_path / "full", tiny_base)
    line = one_line(run(config, tmp_path, files_below(100_000)))  # the parameters fit, the optimizer's state does not
    assert "checkpoint-4 cannot be written (" in line
    assert "free space" in line
    output = tmp_path / "full" / "run"
    assert sorted(path.name for path in output.iterdir()) == ["config.yaml", "metrics.jsonl", "run.json"]
    train(config, overwrite=True)
    assert losses_of(output) == expected


def test_a_later_checkpoint_that_does_not_fit_leaves_the_earlier_one_to_resume_from(
    tiny_base: Path, tmp_path: Path
) -> None:
    expected = losses_of(train(make_config(tmp_path, tiny_base)).output)
    config = make_config(tmp_path / "full", tiny_base, "max_steps=8")
    limited = (
        "from trainer.loop.trainer import AdapterTrainer\n"
        "save = AdapterTrainer._save_checkpoint\n"
        "def second(self, *a):\n"
        "    if self.state.global_step > 4:\n"
        f"        {files_below(100_000)}\n"
        "    return save(self, *a)\n"
        "AdapterTrainer._save_checkpoint = second"
    )
    assert "checkpoint-8 cannot be written" in one_line(run(config, tmp_path, limited))
    output = tmp_path / "full" / "run"
    assert [path.name for path in checkpoints(output)] == ["checkpoint-4"]
    assert not (output / "checkpoint-8").exists()
    assert not (output / "adapter").exists()
    train(config, resume=True)
    assert losses_of(output) == expected


def test_metrics_that_do_not_fit_are_said_so(tiny_base: Path, tmp_path: Path) -> None:
    config = make_config(tmp_path, tiny_base, "max_steps=200", "save_steps=200", "eval_steps=200")
    line = one_line(run(config, tmp_path, files_below(8_000)))
    assert "metrics.jsonl cannot be written: File too large" in line
    assert "go on with --resume" in line


def test_a_torn_checkpoint_is_removed_before_its_step_is_written_again(tiny_base: Path, tmp_path: Path) -> None:
    config = make_config(tmp_path, tiny_base)
    train(config)
    torn = tmp_path / "run" / "checkpoint-8"
    (torn / "trainer_state.json").unlink()
    (torn / "left-over").write_text("x", encoding="utf-8")
    train(config, resume=True)
    assert not (torn / "left-over").exists()
    assert (torn / "trainer_state.json").exists()


def test_running_out_of_memory_names_the_knobs_with_their_values(tmp_path: Path) -> None:
    rows = [{"prompt": "word " * 250, "response": "x" * 100}] * 72
    base = make_base(tmp_path / "base", max_position_embeddings=2048)
    config = make_config(tmp_path, base, "batch_size=64", "gradient_accumulation=2", "max_length=2048", rows=rows)
    some_more = (
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 300_000_000,) * 2)"
    )
    line = one_line(run(config, tmp_path, some_more))
    assert line == (
        "hotswap: out of memory; lower what a step holds, in this order: batch_size=32 with gradient_accumulation=4 "
        "(now 64 and 2; the steps stay the same), gradient_checkpointing=true (now false), a lower max_length "
        "(now 2048), quantize=nf4 (now none); or take a smaller base"
    )


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_every_end_of_memory_is_known(tiny_base: Path, tmp_path: Path, error: Exception) -> None:
    config = make_config(tmp_path, tiny_base, "batch_size=3", "gradient_checkpointing=true", "quantize=nf4")
    with pytest.raises(TrainingError) as caught, explained(config):
        raise error
    assert "batch_size=1 with gradient_accumulation=3 (now 3 and 1; " in str(caught.value)
    assert "gradient_checkpointing" not in str(caught.value)
    assert "quantize" not in str(caught.value)


def test_other_errors_are_left_alone(tiny_base: Path, tmp_path: Path) -> None:
    config = make_config(tmp_path, tiny_base)
    with pytest.raises(RuntimeError, match="shapes differ"), explained(config):
        raise RuntimeError("shapes differ")
    with pytest.raises(FileNotFoundError), explained(config):
        raise FileNotFoundError(errno.ENOENT, "none", "x")
    with pytest.raises(CheckpointError, match="x cannot be written: no; choose an output"), explained(config):
        raise OSError(errno.EROFS, "no", "x")
