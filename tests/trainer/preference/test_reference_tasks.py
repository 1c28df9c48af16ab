"""What held-out pairs and judgements say of a model, worked out by hand."""

from __future__ import annotations

import pytest

from trainer.preference.reference_tasks import judged_metrics, pair_metrics


def test_pairs_gain_by_the_difference_of_their_log_probabilities() -> None:
    before, after = [(-2.0, -1.0), (-1.0, -3.0)], [(-1.0, -3.0), (-2.0, -1.0)]
    found = pair_metrics(before, after, beta=0.5)  # margins 0.5 * (1 + 2) and 0.5 * (-1 - 2)
    assert found == {
        "preferred_before": 0.5,
        "preferred_after": 0.5,
        "reward_accuracy": 0.5,
        "reward_margin": pytest.approx(0.0),
    }
    assert pair_metrics(before[:1], after[:1], beta=0.5)["reward_margin"] == pytest.approx(1.5)
    assert pair_metrics([], [], beta=0.5) == {}


def test_judgements_are_compared_couple_by_couple_and_ties_count_half() -> None:
    good, before = [True, True, False, False], [0.0] * 4
    found = judged_metrics(good, before, [2.0, 1.0, 1.0, 0.0], beta=0.5)
    assert found == {"reward_accuracy": pytest.approx(3.5 / 4), "reward_margin": pytest.approx(0.75 - 0.25)}
    assert judged_metrics([True, True], before[:2], [1.0, 2.0], beta=0.5) == {}
