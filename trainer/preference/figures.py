"""What held-out preferences say of a model. The implicit reward of an answer is beta times its gain in log-probability
over the reference (Rafailov et al. 2023, section 4)."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean


def pair_figures(
    before: Sequence[tuple[float, float]], after: Sequence[tuple[float, float]], beta: float
) -> dict[str, float]:
    """Of log-probabilities (chosen, rejected) by the reference and by the model; nothing for no pairs.

    ``preferred_before`` and ``preferred_after``: the share of pairs whose chosen answer is the likelier one.
    ``reward_accuracy``: the share whose chosen answer gained more; ``reward_margin``: by how much reward on average.
    """
    if not before:
        return {}
    margins = [
        beta * ((chosen - chosen_before) - (rejected - rejected_before))
        for (chosen_before, rejected_before), (chosen, rejected) in zip(before, after, strict=True)
    ]
    return {
        "preferred_before": fmean(chosen > rejected for chosen, rejected in before),
        "preferred_after": fmean(chosen > rejected for chosen, rejected in after),
        "reward_accuracy": fmean(margin > 0 for margin in margins),
        "reward_margin": fmean(margins),
    }


def judged_figures(
    good: Sequence[bool], before: Sequence[float], after: Sequence[float], beta: float
) -> dict[str, float]:
    """Of answers' log-probabilities by the reference and by the model; nothing unless there are good and bad ones.

    ``reward_accuracy``: of all couples of a good and a bad answer, the share where the good one's reward is higher
    (the area under the ROC curve); ``reward_margin``: the difference of the mean rewards.
    """
    rewards = [beta * (now - then) for now, then in zip(after, before, strict=True)]
    goods = [reward for reward, is_good in zip(rewards, good, strict=True) if is_good]
    bads = [reward for reward, is_good in zip(rewards, good, strict=True) if not is_good]
    if not goods or not bads:
        return {}
    return {
        "reward_accuracy": fmean((a > b) + (a == b) / 2 for a in goods for b in bads),
        "reward_margin": fmean(goods) - fmean(bads),
    }
