"""Memory and disk that run out, in real processes with real limits: one line, and nothing half-written."""

from __future__ import annotations

import errno
import resource
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.factory import make_base
from tests.trainer.forked import ForkedCommand
from tests.trainer.support import DEADLINE, make_config
from trainer.config.loading import dump_config
from trainer.config.schema import TrainConfig
from trainer.errors import CheckpointError, TrainingError
from trainer.loop.checkpoint import checkpoints
from trainer.loop.failures import explained
from trainer.loop.records import read_metrics
from trainer.loop.trainer import AdapterTrainer
from trainer.run import train


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    returncode: int | None
    stderr: str


def run(config: TrainConfig, folder: Path, limit: Callable[[], None]) -> Ended:
    """``hotswap train`` in a process that sets ``limit`` once everything is imported."""
    (folder / "c.yaml").write_text(dump_config(config), encoding="utf-8")
    command = ForkedCommand(folder, "train", str(folder / "c.yaml"), "--quiet", first=limit)
    _, err = command.communicate(DEADLINE)
    return Ended(command.poll(), err)


def limit_files(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def limit_files_after_step_4() -> None:
    save = AdapterTrainer._save_checkpoint

    def limited(trainer: Any, *arguments: Any) -> None:
        if trainer.state.global_step > 4:
            limit_files(100_000)
        save(trainer, *arguments)

    AdapterTrainer._save_checkpoint = limited  # type: ignore[assignment,method-assign]


def limit_memory() -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 300_000_000,) * 2)


def losses_of(output: Path) -> list[float]:
    return [record["loss"] for record in read_metrics(output / "metrics.jsonl") if "loss" in record]


def one_line(done: Ended) -> str:
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
    line = one_line(
        run(config, tmp_path, partial(limit_files, 100_000))
    )  # the parameters fit, the optimizer's state does not
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
    assert "checkpoint-8 cannot be written" in one_line(run(config, tmp_path, limit_files_after_step_4))
    output = tmp_path / "full" / "run"
    assert [path.name for path in checkpoints(output)] == ["checkpoint-4"]
    assert not (output / "checkpoint-8").exists()
    assert not (output / "adapter").exists()
    train(config, resume=True)
    assert losses_of(output) == expected


def test_metrics_that_do_not_fit_are_said_so(tiny_base: Path, tmp_path: Path) -> None:
    config = make_config(tmp_path, tiny_base, "max_steps=200", "save_steps=200", "eval_steps=200")
    line = one_line(run(config, tmp_path, partial(limit_files, 8_000)))
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
    line = one_line(run(config, tmp_path, limit_memory))
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
