"""Draws latencies: for every run, TTFT over time and how TTFT, inter-token and end-to-end latency are distributed."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from loadtests.client import Outcome
from loadtests.stats import LATENCIES, ttft

_TITLES = {"ttft": "TTFT", "itl": "inter-token", "e2e": "end to end"}
MOST_MODELS = 8  # drawn with a colour of their own
REST = "other models"


def plot(path: Path, runs: Sequence[tuple[str, Sequence[Outcome]]]) -> None:
    """Write a PNG with one row of panels for each run, given as (title, outcomes)."""
    figure = _figure_of(runs)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def svg(runs: Sequence[tuple[str, Sequence[Outcome]]]) -> str:
    """The same as an SVG element for a page."""
    return _element(_figure_of(runs))


def overlay(sides: Mapping[str, Sequence[Outcome]]) -> str:
    """How the latencies of several runs of one load are distributed, in the same panels; as an SVG element."""
    figure, axes = plt.subplots(1, len(_TITLES), figsize=(14, 3.6), squeeze=False, layout="constrained")
    groups = {name: [o for o in outcomes if o.error is None and o.stamps] for name, outcomes in sides.items()}
    _draw_cdfs(axes[0], groups)
    axes[0][0].legend(list(groups), fontsize="small")
    return _element(figure)


def _figure_of(runs: Sequence[tuple[str, Sequence[Outcome]]]) -> Figure:
    figure, axes = plt.subplots(len(runs), 4, figsize=(18, 3.6 * len(runs)), squeeze=False, layout="constrained")
    for row, (title, outcomes) in zip(axes, runs, strict=True):
        _draw_run(row, title, [o for o in outcomes if o.error is None and o.stamps])
    return figure


def _element(figure: Figure) -> str:
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    plt.close(figure)
    text = out.getvalue()
    return text[text.index("<svg") :]


def _draw_run(row: Sequence[Axes], title: str, outcomes: Sequence[Outcome]) -> None:
    groups = _by_model(outcomes)
    begin = min((o.start for o in outcomes), default=0.0)
    for model, members in groups.items():
        row[0].scatter([o.start - begin for o in members], [ttft(o) * 1e3 for o in members], s=8, label=model)
    row[0].set(title=f"{title}: TTFT over time", xlabel="start, s", ylabel="ms")
    if groups:
        row[0].legend(fontsize="x-small")
    _draw_cdfs(row[1:], groups)


def _by_model(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    busiest = [model for model, _ in Counter(o.model for o in outcomes).most_common(MOST_MODELS)]
    groups: dict[str, list[Outcome]] = {model: [] for model in busiest}
    for outcome in outcomes:
        groups.setdefault(outcome.model if outcome.model in busiest else REST, []).append(outcome)
    return groups


def _draw_cdfs(row: Sequence[Axes], groups: dict[str, list[Outcome]]) -> None:
    for panel, (name, title) in zip(row, _TITLES.items(), strict=True):
        _draw_cdf(panel, title, groups, LATENCIES[name])


def _draw_cdf(
    axes: Axes, name: str, groups: dict[str, list[Outcome]], values: Callable[[Outcome], list[float]]
) -> None:
    for members in groups.values():
        ms = np.sort([value * 1e3 for outcome in members for value in values(outcome)])
        axes.plot(ms, np.arange(1, len(ms) + 1) / max(1, len(ms)))
    axes.set(title=name, xlabel="ms", ylabel="share of values", ylim=(0, 1.02))
    axes.grid(alpha=0.3)
