"""The metrics of every recipe, on the published sets: right answers get the best score, none get the worst."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.shared_data import SHARED
from trainer.evaluation.metrics import METRICS, Case
from trainer.evaluation.rows import RowSource, load_rows
from trainer.evaluation.scoring import score_rows
from trainer.recipes import RECIPES

FOLDERS = {"e2e_nlg": "e2e_nlg_cleaned", "geography_query": "geography"}
ROWS = 100


def folder_of(name: str) -> Path:
    folder = SHARED / FOLDERS.get(name, name)
    if not folder.is_dir():
        pytest.skip(f"needs the data set in {folder}")
    return folder


@pytest.mark.parametrize("name", RECIPES)
def test_the_metrics_of_a_recipe_tell_right_answers_from_none(name: str) -> None:
    folder = folder_of(name)
    rows = load_rows(RowSource(recipe=name, folder=folder, rows=ROWS))
    assert rows.metrics == RECIPES[name].metrics
    split = "test" if "test" in RECIPES[name].splits else "validation"
    assert rows.what == f"{len(rows.questions)} {split} rows of recipe {name}"
    for metric in (METRICS[metric] for metric in rows.metrics):
        if metric.from_logprobs:
            continue
        asked = [(question.reference, question.row) for question in rows.questions]
        best, _ = score_rows(metric, [Case(text, text, row) for text, row in asked])
        worst, _ = score_rows(metric, [Case("", text, row) for text, row in asked])
        assert best.value == pytest.approx(metric.highest)
        assert worst.value == 0.0


def test_references_of_geography_that_do_not_run_are_left_out() -> None:
    recipe, folder = RECIPES["geography"], folder_of("geography")
    found = {row["response"]: row for split in recipe.splits for row in recipe.rows(folder, split)}
    score, _ = score_rows(METRICS["sql_execution"], [Case(sql, sql, row) for sql, row in found.items()])
    assert score.value == 1.0
    assert 0 < len(found) - score.count <= len(found) // 50
    assert f"{len(found) - score.count} row" in score.note
