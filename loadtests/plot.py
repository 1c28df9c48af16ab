"""Draws latencies: for every run, TTFT over time and how TTFT, inter-token and end-to-end latency are distributed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from loadtests.client import Outcome
from loadtests.stats import gaps, ttft

MOST_MODELS = 8  # drawn with a colour of their own
REST = "other models"


def plot(path: Path, runs: Sequence[tuple[str, Sequence[Outcome]]]) -> None:
    """Write a PNG with one row of panels for each run, given as (title, outcomes)."""
    figure, axes = plt.subplots(len(runs), 4, figsize=(18, 3.6 * len(runs)), squeeze=False, layout="constrained")
    for row, (title, outcomes) in zip(axes, runs, strict=True):
        _draw_run(row, title, [o for o in outcomes if o.error is None and o.stamps])
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw_run(row: Sequence[Axes], title: str, outcomes: Sequence[Outcome]) -> None:
    groups = _by_model(outcomes)
    begin = min((o.start for o in outcomes), default=0.0)
    for model, members in groups.items():
        row[0].scatter([o.start - begin for o in members], [ttft(o) * 1e3 for o in members], s=8, label=model)
    row[0].set(title=f"{title}: TTFT over time", xlabel="start, s", ylabel="ms")
    if groups:
        row[0].legend(fontsize="x-small")
    _draw_cdf(row[1], "TTFT", groups, lambda o: [ttft(o)])
    _draw_cdf(row[2], "inter-token", groups, gaps)
    _draw_cdf(row[3], "end to end", groups, lambda o: [o.end - o.start])


def _by_model(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    busiest = [model for model, _ in Counter(o.model for o in outcomes).most_common(MOST_MODELS)]
    groups: dict[str, list[Outcome]] = {model: [] for model in busiest}
    for outcome in outcomes:
        groups.setdefault(outcome.model if outcome.model in busiest else REST, []).append(outcome)
    return groups


def _draw_cdf(
    axes: Axes, name: str, groups: dict[str, list[Outcome]], values: Callable[[Outcome], list[float]]
) -> None:
    for members in groups.values():
        ms = np.sort([value * 1e3 for outcome in members for value in values(outcome)])
        axes.plot(ms, np.arange(1, len(ms) + 1) / max(1, len(ms)))
    axes.set(title=name, xlabel="ms", ylabel="share of values", ylim=(0, 1.02))
    axes.grid(alpha=0.3)
