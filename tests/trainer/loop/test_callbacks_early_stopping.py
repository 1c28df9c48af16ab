"""Early stopping by hand calculation, and runs that end by it: exported at their best, and resumed to the same end."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from adapters.package.reading import read_package
from tests.trainer.support import contradiction, make_config
from trainer.config.schema import TrainConfig
from trainer.loop.callbacks import stale_evaluations
from trainer.loop.records import read_metrics
from trainer.progress import SilentDisplay
from trainer.run import train

NAN = float("nan")


@pytest.mark.parametrize(
    ("losses", "min_delta", "stale"),
    [
        ([], 0.0, 0),
        ([2.0], 0.0, 0),
        ([2.0, 1.0, 0.5], 0.0, 0),
        ([2.0, 2.0], 0.0, 1),
        ([2.0, 1.0, 1.5, 1.2], 0.0, 2),
        ([2.0, 1.0, 1.5, 0.9], 0.0, 0),
        ([2.0, 1.95], 0.1, 1),
        ([2.0, 1.95, 1.85], 0.1, 0),  # small steps that add up
        ([2.0, 1.9, 1.9], 0.1, 2),
        ([2.0, NAN, NAN], 0.0, 2),
        ([NAN, 2.0], 0.0, 0),
    ],
)
def test_evaluations_without_improvement_are_counted(losses: list[float], min_delta: float, stale: int) -> None:
    assert stale_evaluations(losses, min_delta) == stale


def overshooting(folder: Path, base: Path, *more: str) -> TrainConfig:
    """A run whose validation loss soon gets worse."""
    options = ["method=lora", "dropout=0.1", "learning_rate=0.3", "scheduler=constant", "gradient_accumulation=2"]
    options += ["max_steps=60", "eval_steps=2", "save_steps=4", "early_stopping=3", contradiction(folder)]
    return make_config(folder, base, *options, *more)


def values(output: Path, key: str) -> dict[int, float]:
    return {record["step"]: record[key] for record in read_metrics(output / "metrics.jsonl") if key in record}


@pytest.mark.slow
def test_a_run_ends_early_and_exports_its_best_wherever_it_goes_on_from(tiny_base: Path, tmp_path: Path) -> None:
    said: list[str] = []

    class Display(SilentDisplay):
        def message(self, text: str) -> None:
            said.append(text)

    config = overshooting(tmp_path, tiny_base, "keep_checkpoints=50")
    result = train(config, display=Display())
    losses, evaluations = values(result.output, "loss"), values(result.output, "eval_loss")
    best = min(evaluations, key=lambda step: evaluations[step])
    assert result.steps == best + 6 < 60
    assert said[-1] == f"stopped early at step {result.steps}: the validation loss has not improved in 3 evaluations"
    assert result.metrics["validation_loss"] == evaluations[best]
    assert result.package is not None
    package = read_package(result.package)
    saved = load_file(result.output / f"checkpoint-{best}" / "trainable.safetensors")
    assert all(torch.equal(package.tensors[name.replace(".default", "")], value) for name, value in saved.items())

    saves = sorted(int(path.name.removeprefix("checkpoint-")) for path in result.output.glob("checkpoint-*"))
    assert result.steps in saves
    for at in (result.steps, *(step for step in saves if best <= step < result.steps)):
        for step in saves:
            if step > at:
                shutil.rmtree(result.output / f"checkpoint-{step}", ignore_errors=True)
        again = train(config, resume=True)
        assert (again.steps, values(again.output, "loss"), values(again.output, "eval_loss")) == (
            result.steps,
            losses,
            evaluations,
        ), at
        assert again.package is not None
        assert read_package(again.package).digest == package.digest


def test_a_run_that_ended_early_may_go_on_without_it(tiny_base: Path, tmp_path: Path) -> None:
    first = train(overshooting(tmp_path, tiny_base))
    plain = overshooting(tmp_path, tiny_base, "max_steps=60", "early_stopping=null", "best_checkpoint=true")
    on = train(plain, resume=True)
    assert (first.steps < 60, on.steps) == (True, 60)


def test_the_best_evaluation_has_its_checkpoint_between_the_regular_ones(tiny_base: Path, tmp_path: Path) -> None:
    options = ["method=lora", "learning_rate=0.3", "scheduler=constant", "max_steps=30", "eval_steps=2"]
    options.append(contradiction(tmp_path))
    result = train(make_config(tmp_path, tiny_base, *options, "save_steps=30", "best_checkpoint=true"))
    evaluations = values(result.output, "eval_loss")
    best = min(evaluations, key=lambda step: evaluations[step])
    assert best < 30
    assert result.metrics["validation_loss"] == evaluations[best]
    assert result.package is not None
    exported = read_package(result.package).tensors
    saved = load_file(result.output / f"checkpoint-{best}" / "trainable.safetensors")
    assert all(torch.equal(exported[name.replace(".default", "")], value) for name, value in saved.items())


def test_a_run_that_was_moved_still_exports_its_best(tiny_base: Path, tmp_path: Path) -> None:
    first = train(overshooting(tmp_path, tiny_base, "keep_checkpoints=50"))
    assert first.package is not None
    digest = read_package(first.package).digest
    moved = tmp_path / "elsewhere"
    first.output.rename(moved)
    for last in (True, False):  # as it ended, and one step before
        again = train(overshooting(tmp_path, tiny_base, "keep_checkpoints=50", f"output={moved}"), resume=True)
        assert again.package is not None
        assert read_package(again.package).digest == digest
        if last:
            shutil.rmtree(moved / f"checkpoint-{first.steps}")
