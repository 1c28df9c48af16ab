"""Whole sweeps on a tiny base: ranked, gone on with, and with a failure among the runs."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from tests.trainer.support import make_config
from trainer.commands.sweep import sweep as command
from trainer.config.loading import dump_config
from trainer.errors import CheckpointError, ConfigError
from trainer.loop.records import read_metrics
from trainer.progress import SilentDisplay
from trainer.sweep import TrialResult, as_markdown, as_text, rank_results, read_results, sweep


@pytest.fixture
def file(tiny_base: Path, tmp_path: Path) -> Path:
    path = tmp_path / "c.yaml"
    path.write_text(dump_config(make_config(tmp_path, tiny_base, "method=lora", "max_steps=4")), encoding="utf-8")
    return path


def test_runs_are_ranked_and_kept_and_only_what_is_missing_is_run_again(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(file), "learning_rate=1e-9,2e-2,1e30", "scheduler=constant", "--quiet"]
    assert command(arguments) == 0
    out = capsys.readouterr().out.splitlines()
    output = tmp_path / "run"
    assert out[-1] == f"best: {output}/learning_rate-2e-2/adapter"
    assert [line.split()[:2] for line in out[1:4]] == [["1", "2e-2"], ["2", "1e-9"], ["3", "1e30"]]
    assert "lower training.learning_rate" in out[3]
    record = json.loads((output / "sweep.json").read_text(encoding="utf-8"))
    assert (record["metric"], record["best"]) == ("validation_loss", "learning_rate-2e-2")
    best, second, failed = record["runs"]
    assert best["metrics"]["validation_loss"] < second["metrics"]["validation_loss"]
    assert failed["package"] is None
    logged = read_metrics(output / "learning_rate-2e-2" / "metrics.jsonl")
    assert best["metrics"]["validation_loss"] == [r["eval_loss"] for r in logged if "eval_loss" in r][-1]
    assert (output / "sweep.md").read_text(encoding="utf-8").count("\n") == 5

    stamps = {path: path.stat().st_mtime_ns for path in output.glob("*/metrics.jsonl")}
    assert command([*arguments, "learning_rate=1e-9,2e-2,1e-3"]) == 0  # the last one given holds
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert set(read_results(output)) == {"learning_rate-1e-9", "learning_rate-2e-2", "learning_rate-1e-3"}


def test_an_interrupted_run_of_a_sweep_goes_on_from_its_checkpoint(file: Path, tmp_path: Path) -> None:
    settings = ["learning_rate=1e-3,2e-3", "max_steps=8"]
    first = sweep(file, settings, display=SilentDisplay())
    output = tmp_path / "run"
    record = json.loads((output / "sweep.json").read_text(encoding="utf-8"))
    record["runs"] = [run for run in record["runs"] if run["values"]["learning_rate"] == "1e-3"]  # as after a crash
    (output / "sweep.json").write_text(json.dumps(record), encoding="utf-8")
    (output / "learning_rate-2e-3" / "checkpoint-8" / "trainer_state.json").unlink()
    again = sweep(file, settings, display=SilentDisplay())
    assert [run.name for run in again.runs] == [run.name for run in first.runs]
    for one, other in zip(first.runs, again.runs, strict=True):
        assert one.metrics["validation_loss"] == other.metrics["validation_loss"]
    starts = json.loads((output / "learning_rate-2e-3" / "run.json").read_text(encoding="utf-8"))["starts"]
    assert [start["step"] for start in starts] == [0, 4]


def test_a_sweep_of_other_settings_is_not_mixed_in(file: Path) -> None:
    sweep(file, ["learning_rate=1e-3,2e-3", "max_steps=1"], display=SilentDisplay())
    with pytest.raises(ConfigError, match="holds a sweep with other settings"):
        sweep(file, ["learning_rate=1e-3,2e-3", "max_steps=2"], display=SilentDisplay())
    done = sweep(file, ["learning_rate=1e-3,2e-3", "max_steps=2"], overwrite=True, display=SilentDisplay())
    assert {run.error for run in done.runs} == {None}


@pytest.mark.parametrize(
    ("settings", "metric", "words"),
    [
        (["learning_rate=1e-3"], None, "a setting with several values"),
        (["learning_rate=1e-3,oops"], None, "training.learning_rate: Expected float"),
        (["seed=1,2"], "bleu", "unknown metric 'bleu'; choose from validation_loss"),
        (["seed=1,2"], "exact_match", "exact_match_rows"),
        (["seed=1,2", "validation=0"], "validation_loss", "no validation rows"),
    ],
)
def test_mistakes_are_said_before_anything_runs(
    file: Path, tmp_path: Path, settings: list[str], metric: str | None, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        sweep(file, settings, metric=metric, display=SilentDisplay())
    assert not (tmp_path / "run").exists()


def outcome(name: str, value: float | None, error: str | None = None) -> TrialResult:
    return TrialResult(name, {"r": name}, "", metrics={} if value is None else {"exact_match": value}, error=error)


def test_the_best_comes_first_whichever_way_the_metric_counts() -> None:
    runs = [outcome("a", 0.1), outcome("b", None, "boom | bang"), outcome("c", math.nan), outcome("d", 0.9)]
    assert [run.name for run in rank_results(runs, "exact_match")] == ["d", "a", "c", "b"]
    losses = [TrialResult(name, {}, "", metrics={"validation_loss": value}) for name, value in (("x", 2.0), ("y", 1.0))]
    assert [run.name for run in rank_results(losses, "validation_loss")] == ["y", "x"]
    assert as_text(rank_results(runs, "exact_match"), "exact_match").splitlines()[1].split() == ["1", "d", "0.9"]
    assert "boom \\| bang" in as_markdown(runs, "exact_match")


def test_the_metric_is_one_that_the_runs_have(file: Path, tmp_path: Path) -> None:
    def refused(*settings: str, metric: str | None) -> str:
        with pytest.raises(ConfigError) as error:
            sweep(file, ["learning_rate=1e-3,2e-3", *settings], metric=metric, display=SilentDisplay())
        return str(error.value)

    grpo = ("preference=grpo", "preference.reward=math:fsum", "eval_steps=null", "num_generations=4")
    assert "there are no validation rows" in refused(*grpo, "validation=0", metric=None)
    assert "grpo measures the held-out reward" in refused(*grpo, metric="validation_loss")
    assert "it is of grpo, and a run is supervised" in refused(metric="reward_after")
    assert "it is of dpo, kto, reward, and a run is grpo" in refused(*grpo, metric="reward_accuracy")
    low, high = (TrialResult(name, {}, "", metrics={"reward_after": value}) for name, value in (("a", 0.1), ("b", 0.9)))
    assert rank_results([low, high], "reward_after") == [high, low]


def test_a_sweep_into_a_file_is_one_line(file: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("x")
    with pytest.raises(CheckpointError, match="is not a directory"):
        sweep(file, ["learning_rate=1e-3,2e-3", f"output={tmp_path / 'taken'}"], display=SilentDisplay())
