"""The paired comparison with TRL: its arithmetic, and both sides learning the same from the same batches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.versus_trl import FIGURES, main, ratios, table
from tests.trainer.support import colour_rows, write_jsonl


def _run(side: str, value: float) -> dict[str, Any]:
    return {"side": side, **{name: value for name, _unit, _more in FIGURES}}


def test_ratios_pair_the_runs_of_a_round() -> None:
    runs = [_run("hotswap", 3.0), _run("trl-same", 2.0), _run("hotswap", 8.0), _run("trl-same", 4.0)]
    assert ratios(runs, ["trl-same"])["trl-same"]["tokens_per_second"] == [1.5, 2.0]
    assert "| tokens per second (tokens/s, more is better) | 5.5 | 3 | 1.750 |" in table(runs, ["trl-same"])


@pytest.mark.slow
def test_both_sides_learn_the_same_from_the_same_batches(tiny_base: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", colour_rows(60))
    small = ["--rounds", "1", "--held", "8", "--answers", "4", "--steps", "6", "--batch-size", "4"]
    where = ["--data", str(data), "--base", str(tiny_base), "--out", str(tmp_path / "out")]
    against = ["--against", "trl-same", "trl-best", "trl-default"]
    assert main([*where, *small, *against, "--learning-rate", "1e-2"]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    ours, same, best, default = report["runs"]
    assert ours["tokens"] == same["tokens"]
    assert ours["validation_loss"] == pytest.approx(same["validation_loss"], rel=1e-3)
    assert max(best["validation_loss"], default["validation_loss"]) < 6  # untrained: 5.8
