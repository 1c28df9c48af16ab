"""examples/grpo_sql: its reward by hand, and a run of its configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from adapters.base import DEFAULT_BASE, resolve_base
from adapters.package import read_package
from server.engine.messages import AdapterLoaded
from tests.trainer.test_served import serve
from trainer.config.file import load_config
from trainer.preference.reward_function import load_reward
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


def test_every_question_is_answered_by_its_query() -> None:
    made: Any = load_reward(f"{EXAMPLE / 'fleet.py'}:questions")(40, 1)  # type: ignore[arg-type]
    rows = list(made)
    assert len({row["prompt"] for row in rows}) > 20
    assert set(load_reward(f"{EXAMPLE / 'fleet.py'}:execution")([row["sql"] for row in rows], rows)) == {1.0}


def _example(tmp_path: Path, *overrides: str) -> Any:
    data = tmp_path / "questions.jsonl"
    load_reward(f"{EXAMPLE / 'fleet.py'}:write")(data, list(load_reward(f"{EXAMPLE / 'fleet.py'}:questions")(60, 0)))  # type: ignore[arg-type]
    own = [f"output={tmp_path / 'run'}", f"data.path={data}", f"preference.reward={EXAMPLE / 'fleet.py'}:execution"]
    return train(load_config(EXAMPLE / file, [*own, *overrides], {}))


def test_the_example_runs(tiny_base: Path, tmp_path: Path) -> None:
    result = _example(tmp_path, f"base={tiny_base}", "max_steps=2", "validation=4")
    assert result.metrics["reward_after"] == 0  # a random model writes no query
    assert read_package(result.package).config.peft_type == "LORA"


@pytest.mark.slow
@pytest.mark.xfail(reason="15 steps do not change the greedy answers of so small a base", raises=AssertionError)
def test_the_default_base_learns_to_write_queries(tmp_path: Path) -> None:
    result = _example(tmp_path)
    assert result.metrics["reward_after"] > result.metrics["reward_before"]
    assert isinstance(serve(resolve_base(DEFAULT_BASE), result.package, "none"), AdapterLoaded)
