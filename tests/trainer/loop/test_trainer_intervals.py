"""When a run evaluates and saves: in steps, in shares of the run, by epochs, never."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.trainer.support import make_config
from trainer.config.schema import TrainingConfig
from trainer.loop.trainer import intervals, make_arguments
from trainer.run import train


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, (6, 6)),  # a fifth of 30 steps
        ({"eval_steps": 4, "save_steps": 8}, (4, 8)),
        ({"eval_steps": 4}, (4, 4)),
        ({"eval_steps": "epoch", "save_steps": "epoch"}, (10, 10)),
        ({"eval_steps": "epoch/4", "save_steps": "epoch"}, (2, 8)),  # a multiple, and never behind the epoch's end
        ({"eval_steps": "epoch/4", "save_steps": "epoch/3"}, (2, 3)),
        ({"eval_steps": "epoch/99"}, (1, 1)),
        ({"eval_steps": "no"}, (0, 6)),
        ({"eval_steps": "no", "save_steps": "no"}, (0, 0)),
        ({"save_steps": "no"}, (6, 0)),
        ({"eval_steps": 0.1, "save_steps": 0.5}, (3, 15)),
    ],
)
def test_intervals_in_steps(settings: dict[str, Any], expected: tuple[int, int]) -> None:
    training = TrainingConfig(batch_size=2, gradient_accumulation=2, epochs=3, **settings)
    assert intervals(training, train_rows=40) == expected


def test_checkpoints_come_at_the_ends_of_epochs_or_never(tiny_base: Path, tmp_path: Path) -> None:
    by_epoch = ("eval_steps=epoch", "save_steps=epoch", "max_steps=null", "epochs=2", "batch_size=20")
    run = train(make_config(tmp_path, tiny_base, *by_epoch, "keep_checkpoints=5"))
    assert run.steps == 4
    assert sorted(path.name for path in run.output.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]
    never = make_config(tmp_path, tiny_base, "eval_steps=no", "save_steps=no", "max_steps=1")
    arguments = make_arguments(never, 40)
    assert (str(arguments.eval_strategy), str(arguments.save_strategy)) == ("IntervalStrategy.NO", "SaveStrategy.NO")
    run = train(never, overwrite=True)
    assert not list(run.output.glob("checkpoint-*"))
    assert "validation_loss" not in run.metrics
