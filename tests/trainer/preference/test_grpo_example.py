"""examples/grpo_sql: its reward by hand, and a run of its configuration."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from adapters.package.reading import read_package
from bases.finding import DEFAULT_BASE, resolve_base
from server.engine.messages import AdapterLoaded
from tests.trainer.served import serve
from trainer.config.loading import load_config
from trainer.loop.records import read_metrics
from trainer.preference.grpo import load_reward
from trainer.run import train

EXAMPLE = Path(__file__).parents[3] / "examples" / "grpo_sql"
ROW = {"sql": "SELECT name FROM ships WHERE port = 'Oslo'"}


@pytest.mark.parametrize(
    ("answer", "reward"),
    [
        (" SELECT name FROM ships WHERE port = 'Oslo';", 1.0),
        ("```sql\nSELECT name FROM ships WHERE port = 'Oslo' ORDER BY crew\n```", 1.0),
        ("SELECT name FROM ships", 0.2),
        ("SELECT name FROM boats", 0.05),
        ("SELECT", 0.05),
        ("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n", 0.0),
        ("SELECT COUNT(*) FROM ships a, ships b, ships c, ships d, ships e, ships f", 0.05),  # cut off
        ("DROP TABLE ships", 0.0),
        ("The ships in Oslo", 0.0),
        ("", 0.0),
    ],
)
def test_the_reward_is_what_the_rows_say(answer: str, reward: float) -> None:
    assert load_reward(f"{EXAMPLE / 'fleet.py'}:execution")([answer], [ROW]) == [reward]


def test_every_question_is_answered_by_its_query_and_asked_once() -> None:
    asked, answered = _fleet("questions")(), _fleet("answers")()
    assert set(_fleet("execution")([row["sql"] for row in asked], asked)) == {1.0}
    assert all(row["response"].startswith(" SELECT ") for row in answered)
    assert len({row["prompt"] for row in [*asked, *answered]}) == len(asked) + len(answered) == 200


def _fleet(name: str) -> Any:
    return load_reward(f"{EXAMPLE / 'fleet.py'}:{name}")


def _example(tmp_path: Path, *overrides: str) -> Any:
    """The two runs of the example, one after the other; the second one's result."""
    _fleet("write")(tmp_path / "answers.jsonl", _fleet("answers")())
    _fleet("write")(tmp_path / "questions.jsonl", _fleet("questions")())
    own = [f"output={tmp_path / 'start'}", f"data.path={tmp_path / 'answers.jsonl'}"]
    start = train(load_config(EXAMPLE / "supervised.yaml", [*own, *overrides], {}))
    own = [f"output={tmp_path / 'run'}", f"data.path={tmp_path / 'questions.jsonl'}", f"start_from={start.package}"]
    own.append(f"preference.reward={EXAMPLE / 'fleet.py'}:execution")
    return train(load_config(EXAMPLE / "grpo.yaml", [*own, *overrides], {}))


def test_the_example_runs(tiny_base: Path, tmp_path: Path) -> None:
    result = _example(tmp_path, f"base={tiny_base}", "max_steps=2", "validation=4")
    assert result.metrics["reward_after"] == 0  # a random model writes no query
    assert read_package(result.package).config.peft_type == "LORA"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_default_base_learns_to_write_queries(tmp_path: Path) -> None:
    result = _example(tmp_path, "threads=1")
    earned = [record["reward"] for record in read_metrics(result.output / "metrics.jsonl") if "reward" in record]
    assert fmean(earned[-5:]) > fmean(earned[:5]) + 0.25  # measured: 0.74 and 0.23
    assert result.metrics["reward_after"] > 0.7
    assert isinstance(serve(resolve_base(DEFAULT_BASE), result.package, "none"), AdapterLoaded)
