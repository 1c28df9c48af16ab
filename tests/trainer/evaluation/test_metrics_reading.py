"""Metrics of models that read, against figures worked out by hand."""

from __future__ import annotations

import json
import math

import pytest

from trainer.data.messages import Question
from trainer.evaluation.metrics import METRICS, Case, find_metrics
from trainer.evaluation.metrics.reading import reading_metrics
from trainer.evaluation.scoring import check_scorable, score_rows, score_texts


def value(name: str, said: list[str], wanted: list[str]) -> float:
    return score_texts([METRICS[name]], said, wanted)[name]


def test_classes() -> None:
    said, wanted = ["a", "b", "b", "c", "a"], ["a", "b", "a", "a", "d"]
    assert value("accuracy", said, wanted) == pytest.approx(2 / 5)
    assert value("micro_f1", said, wanted) == pytest.approx(2 / 5)
    # a: 1 hit of 2 said and 3 wanted; b: 1 of 2 and 1; c: 0 of 1 and 0; d: 0 of 0 and 1
    assert value("macro_f1", said, wanted) == pytest.approx((2 / 5 + 2 / 3 + 0 + 0) / 4)


def test_any_number_of_classes() -> None:
    said = [json.dumps(one) for one in (["a", "b"], [], ["c"])]
    wanted = [json.dumps(one) for one in (["a"], [], ["b", "c"])]
    assert value("accuracy", said, wanted) == pytest.approx(1 / 3)
    assert value("micro_f1", said, wanted) == pytest.approx(2 * 2 / (3 + 3))
    assert value("macro_f1", said, wanted) == pytest.approx((1 + 0 + 1) / 3)


def test_numbers() -> None:
    said, wanted = ["1", "2", "3", "10"], ["1", "3", "2", "4"]
    assert value("mse", said, wanted) == pytest.approx((0 + 1 + 1 + 36) / 4)
    assert value("spearman", said, wanted) == pytest.approx(0.8)  # 1 - 6 * 2 / (4 * 15)
    x, y = [1, 2, 3, 10], [1, 3, 2, 4]
    above = sum((a - 4) * (b - 2.5) for a, b in zip(x, y, strict=True))
    below = math.sqrt(sum((a - 4) ** 2 for a in x) * sum((b - 2.5) ** 2 for b in y))
    assert value("pearson", said, wanted) == pytest.approx(above / below)
    assert value("spearman", ["5", "5", "5"], ["1", "2", "3"]) == 0  # nothing is ordered
    assert value("spearman", ["1", "1", "2"], ["1", "2", "2"]) == pytest.approx(0.5)  # equal numbers share a rank
    score, _ = score_rows(
        METRICS["pearson"], [Case(a, b) for a, b in zip([*said, "much"], [*wanted, "1"], strict=True)]
    )
    assert score.count == 4
    assert score.value == pytest.approx(above / below)


def test_places() -> None:
    said, wanted = ["1", "2", "6", "11"], ["a text"] * 4
    found = score_texts(find_metrics(reading_metrics("embedding")), said, wanted)
    assert found["recall_at_1"] == pytest.approx(1 / 4)
    assert found["recall_at_5"] == pytest.approx(2 / 4)
    assert found["recall_at_10"] == pytest.approx(3 / 4)
    assert found["mrr"] == pytest.approx((1 + 1 / 2 + 1 / 6 + 1 / 11) / 4)


@pytest.mark.parametrize("task", ["classification", "regression", "embedding", "similarity"])
def test_rows_are_known_to_be_scorable_before_they_are_asked(task: str) -> None:
    questions = [Question(None, "a", "0.5"), Question(None, "b", "1.5")]
    for metric in find_metrics(reading_metrics(task)):
        check_scorable(metric, questions)
