from __future__ import annotations

import numpy as np
import pytest

from trainer.errors import EvaluationError
from trainer.evaluation.bootstrap import interval, paired_interval
from trainer.evaluation.metrics import METRICS, Case
from trainer.evaluation.metrics.metric import Array, ratio
from trainer.evaluation.results import Evaluation, ScoredAnswer
from trainer.evaluation.scoring import compare, score_rows


def shares(hits: Array) -> Array:
    return np.stack([hits, np.ones_like(hits)], axis=1)


def test_the_interval_of_a_share_is_that_of_the_normal_approximation() -> None:
    hits = np.array([1.0] * 300 + [0.0] * 700)
    low, high = interval(shares(hits), ratio)
    half = 1.96 * np.sqrt(0.3 * 0.7 / 1000)
    assert (low, high) == pytest.approx((0.3 - half, 0.3 + half), abs=0.004)
    assert interval(shares(hits), ratio) == (low, high)  # seeded


def test_intervals_hold_the_truth_about_95_times_in_100() -> None:
    generator = np.random.default_rng(1)
    held = 0
    for _ in range(200):
        low, high = interval(shares((generator.random(150) < 0.4).astype(np.float64)), ratio)
        held += low <= 0.4 <= high
    assert 180 <= held <= 198  # 190 on average


def test_a_paired_interval_is_narrower_than_the_two_apart() -> None:
    generator = np.random.default_rng(2)
    live = (generator.random(400) < 0.5).astype(np.float64)
    candidate = live.copy()
    candidate[np.flatnonzero(live == 0)[:20]] = 1.0  # right on 20 rows more, wrong on none more
    low, high = paired_interval(shares(candidate), shares(live), ratio)
    half = 1.96 * np.sqrt(0.05 * 0.95 / 400)
    assert (low, high) == pytest.approx((0.05 - half, 0.05 + half), abs=0.004)
    apart = interval(shares(candidate), ratio)
    assert high - low < (apart[1] - apart[0]) / 2


def test_many_rows_are_drawn_in_rounds_that_fit_memory() -> None:
    hits = np.array([1.0, 0.0] * 20_000)
    low, high = interval(shares(hits), ratio)
    assert (low, high) == pytest.approx((0.5 - 0.0049, 0.5 + 0.0049), abs=0.0005)


def evaluation(name: str, answers: list[str], references: list[str], metrics: list[str], rows: str = "r") -> Evaluation:
    cases = [Case(answer, reference) for answer, reference in zip(answers, references, strict=True)]
    scored = {metric: score_rows(METRICS[metric], cases) for metric in metrics}
    return Evaluation(
        name,
        {metric: score for metric, (score, _) in scored.items()},
        tuple(ScoredAnswer(answer, "stop", {}) for answer in answers),
        1.0,
        1.0,
        rows,
        {metric: statistics for metric, (_, statistics) in scored.items()},
    )


def test_compare_gives_the_difference_on_the_same_rows() -> None:
    references = ["a"] * 50
    candidate = evaluation("new", ["a"] * 40 + ["b"] * 10, references, ["exact_match", "bleu4"])
    live = evaluation("old", ["a"] * 20 + ["b"] * 30, references, ["exact_match"])
    comparison = compare(candidate, live)
    assert list(comparison.differences) == ["exact_match"]  # what both have
    found = comparison.differences["exact_match"]
    assert (found.candidate, found.live, found.difference) == pytest.approx((0.8, 0.4, 0.4))
    assert 0 < found.low < 0.4 < found.high
    assert found.verdict == "better"
    assert compare(live, candidate).differences["exact_match"].verdict == "worse"
    assert comparison.as_dict()["metrics"]["exact_match"]["verdict"] == "better"
    assert "exact_match          0.8000     0.4000     +0.4000" in comparison.table()


def test_compare_of_a_model_with_itself_tells_nothing_apart() -> None:
    one = evaluation("one", ["a", "b"] * 10, ["a"] * 20, ["exact_match"])
    found = compare(one, one).differences["exact_match"]
    assert (found.low, found.high, found.verdict) == (0.0, 0.0, "not told apart")


def test_compare_leaves_out_rows_that_one_of_them_could_not_be_scored_on() -> None:
    number = ["1", "no number", "2"]
    one = evaluation("one", ["1", "1", "1"], number, ["gsm8k_accuracy"])
    assert compare(one, one).differences["gsm8k_accuracy"].count == 2


def test_compare_refuses_evaluations_of_other_rows() -> None:
    one, other = (evaluation("m", ["a"], ["a"], ["exact_match"], rows) for rows in ("r", "s"))
    with pytest.raises(EvaluationError, match="not asked the same rows"):
        compare(one, other)
