"""What the shortest runs record: a training loss and its picture, whatever training.log_steps says."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.trainer.support import losses, make_config
from trainer.run import train


@pytest.mark.usefixtures("drawn")
@pytest.mark.parametrize(
    ("options", "logged"),
    [
        (["max_steps=1", "eval_steps=null", "save_steps=null"], [1]),
        (["max_steps=1", "validation=0", "eval_steps=null", "save_steps=null"], [1]),
        (["max_steps=5"], [4, 5]),  # what had been seen at the first evaluation, and at the end
        (["max_steps=12", "eval_steps=12"], [10, 12]),
        (["max_steps=20", "eval_steps=2", "save_steps=2", "early_stopping=1", "early_stopping_min_delta=99"], [2]),
    ],
    ids=str,
)
def test_the_last_step_is_logged_and_drawn(
    tiny_base: Path, tmp_path: Path, options: list[str], logged: list[int]
) -> None:
    result = train(make_config(tmp_path, tiny_base, "log_steps=10", *options))
    curve = losses(result)
    assert [step for step in curve if step in range(1, 21)] == logged
    assert result.metrics["train_loss"] == curve[logged[-1]]
    assert (result.output / "loss.png").stat().st_size > 10_000


@pytest.mark.usefixtures("drawn")
def test_a_run_that_had_ended_is_drawn_and_summed_up_again(tiny_base: Path, tmp_path: Path) -> None:
    config = make_config(tmp_path, tiny_base, "log_steps=10", "max_steps=4")
    first = train(config)
    (first.output / "loss.png").unlink()
    again = train(config, resume=True)
    assert (first.output / "loss.png").exists()
    assert again.metrics["train_loss"] == first.metrics["train_loss"]
