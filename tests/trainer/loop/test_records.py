from __future__ import annotations

from pathlib import Path

import pytest

from trainer.errors import ConfigError
from trainer.loop.records import MetricsFile, loss_curves, plot_losses, read_metrics, require_trackers


def test_records_are_appended_and_a_resumed_run_keeps_what_lies_before_it(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    metrics = MetricsFile(path)
    for step in (1, 2, 3):
        metrics.append({"step": step, "loss": 1 / step})
    MetricsFile(path, resume_step=2).append({"step": 3, "loss": 0.5})
    assert [record["loss"] for record in read_metrics(path)] == [1.0, 0.5, 0.5]
    MetricsFile(path)
    assert read_metrics(path) == []


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "lo', encoding="utf-8")
    assert read_metrics(path) == [{"step": 1}]
    assert read_metrics(tmp_path / "none.jsonl") == []


def test_numbers_that_json_has_not_are_null(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": NaN}\n', encoding="utf-8")  # of an older version
    MetricsFile(path, resume_step=1).append({"step": 2, "loss": float("inf"), "name": "x"})
    lines = ['{"step": 1, "loss": null}', '{"step": 2, "loss": null, "name": "x"}']
    assert path.read_text(encoding="utf-8").splitlines() == lines


def test_curves_are_thinned_and_keep_their_end() -> None:
    records = [{"step": step, "loss": 1 / step} for step in range(1, 1001)]
    train, validation = loss_curves([*records, {"step": 1000, "eval_loss": 2.0}, {"step": 1000, "loss": None}], 200)
    assert (len(train), train[0], train[-1]) == (200, (5, 0.2), (1000, 0.001))
    assert validation == [(1000, 2.0)]
    assert loss_curves(records[:3], 200)[0] == [(1, 1.0), (2, 0.5), (3, 1 / 3)]


def test_losses_are_plotted_where_there_are_any(tmp_path: Path) -> None:
    plot_losses([{"step": 1, "loss": None}, {"step": 2, "train_loss": 1.0}], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
    for name, one in (("train", {"step": 1, "loss": -1.0}), ("validation", {"step": 1, "eval_loss": 1.0})):
        plot_losses([one], tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000
    records = [{"step": step, "loss": 1.0 / step} for step in range(1, 100)]
    plot_losses([*records, {"step": 99, "eval_loss": 0.5}], tmp_path / "loss.png")
    assert (tmp_path / "loss.png").stat().st_size > 10_000


def test_trackers_that_nobody_knows_are_told_with_those_that_there_are() -> None:
    require_trackers([])
    with pytest.raises(ConfigError) as caught:
        require_trackers(["foo", "bar"])
    first, second = caught.value.refusals
    assert first.startswith("training.trackers: unknown tracker 'foo'; choose from ")
    assert all(name in first for name in ("wandb", "tensorboard", "mlflow"))
    assert "'bar'" in second
