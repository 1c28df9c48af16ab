"""loss.png: training and validation loss over steps, drawn from metrics.jsonl."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PLOT_FILE = "loss.png"
_SMOOTHED_FROM = 50  # points from which a running mean is drawn over the raw losses


def plot_losses(records: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the ``loss`` and ``eval_loss`` of ``records`` over ``step`` into ``path``; nothing without losses."""
    train = [(r["step"], r["loss"]) for r in records if "loss" in r]
    validation = [(r["step"], r["eval_loss"]) for r in records if "eval_loss" in r]
    if not train:
        return
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel="step", ylabel="loss per token", title="Loss")
    smooth = len(train) >= _SMOOTHED_FROM
    axes.plot(*zip(*train, strict=True), color="C0", alpha=0.35 if smooth else 1, label="train")
    if smooth:
        axes.plot(*zip(*_smoothed(train), strict=True), color="C0", label="train, running mean")
    if validation:
        axes.plot(*zip(*validation, strict=True), color="C1", marker="o", label="validation")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    scratch = path.with_name(f".{path.name}")
    figure.savefig(scratch, format="png")
    os.replace(scratch, path)


def _smoothed(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Exponential running mean over about a twentieth of the points."""
    weight = 1 / max(len(points) / 20, 1)
    mean = points[0][1]
    out = []
    for step, value in points:
        mean += weight * (value - mean)
        out.append((step, mean))
    return out
