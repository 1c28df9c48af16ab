"""The records of a run: metrics.jsonl, TensorBoard's event files, transformers' trackers, and loss.png.

metrics.jsonl has one line for each logged step, each evaluation and the end. Knows nothing of torch.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from trainer.errors import ConfigError
from trainer.files import write_whole


class RecordSink(Protocol):
    """Where records go."""

    def append(self, record: dict[str, Any]) -> None:
        """Add one, which holds ``step``."""
        ...


METRICS_FILE = "metrics.jsonl"


class MetricsFile:
    """Appends records to ``path``; every line is flushed, so that a run can be watched."""

    def __init__(self, path: Path, *, resume_step: int | None = None) -> None:
        """Start afresh, or keep the records up to ``resume_step``: what came after is computed again."""
        self._path = path
        kept = [] if resume_step is None else [r for r in read_metrics(path) if r.get("step", 0) <= resume_step]
        write_whole(path, "".join(map(_line, kept)))

    def append(self, record: dict[str, Any]) -> None:
        """Add one record; it must hold ``step``."""
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(_line(record))
        except OSError as error:
            error.filename = str(self._path)  # a failed write does not say where
            raise


def _line(record: dict[str, Any]) -> str:
    """``record`` as JSON, which has no numbers that are not finite: null in their place."""
    return json.dumps({name: value if _is_number(value) else None for name, value in record.items()}) + "\n"


def _is_number(value: Any) -> bool:
    """Whether ``value`` is anything but a number that is not finite."""
    return not isinstance(value, float) or math.isfinite(value)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records in ``path``, none without the file; a torn last line is left out."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def loss_curves(records: Sequence[dict[str, Any]], most: int) -> tuple[list[tuple[int, float]], ...]:
    """Pairs of step and loss, of training and of validation, each thinned evenly to about ``most`` with its last."""
    curves = []
    for key in ("loss", "eval_loss"):
        points = [(record["step"], float(record[key])) for record in records if record.get(key) is not None]
        apart = max(math.ceil(len(points) / most), 1)
        curves.append(points[::-1][::apart][::-1])
    return tuple(curves)


TENSORBOARD_DIR = "tensorboard"


def require_tensorboard() -> None:
    """Raise ConfigError when tensorboard is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        raise ConfigError(
            "training.tensorboard: tensorboard is an extra: pip install 'hotswap[tensorboard]', or set it to false"
        )


class TensorBoardFile:
    """Appends records to the event files in ``folder``."""

    def __init__(self, folder: Path, *, resume_step: int | None = None) -> None:
        """Go on after ``resume_step``: what TensorBoard holds of later steps is no longer shown."""
        from torch.utils.tensorboard import SummaryWriter

        purge = None if resume_step is None else resume_step + 1
        self._writer: Any = SummaryWriter(str(folder), purge_step=purge)

    def append(self, record: dict[str, Any]) -> None:
        """Write the numbers of ``record``, which must hold ``step``: eval_loss as eval/loss, others as train/NAME."""
        for name, value in record.items():
            if name != "step" and isinstance(value, int | float) and _is_number(value):
                tag = name.replace("eval_", "eval/") if name.startswith("eval_") else f"train/{name}"
                self._writer.add_scalar(tag, value, record["step"])
        self._writer.flush()


def require_trackers(names: Sequence[str]) -> None:
    """Raise ConfigError for those of ``names`` that transformers does not know or that are not installed."""
    if not names:
        return
    from transformers.integrations import get_available_reporting_integrations
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    known, installed = INTEGRATION_TO_CALLBACK, get_available_reporting_integrations()
    unknown = [
        f"unknown tracker {name!r}; choose from {', '.join(sorted(known))}" for name in names if name not in known
    ]
    missing = [
        f"{name} is not installed; install it, or leave it out"
        for name in names
        if name in known and name not in installed
    ]
    if unknown or missing:
        raise ConfigError(*(f"training.trackers: {problem}" for problem in (*unknown, *missing)))


PLOT_FILE = "loss.png"
_SMOOTHED_FROM = 50  # points from which a running mean is drawn over the raw losses


def plot_losses(records: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the ``loss`` and ``eval_loss`` of ``records`` over ``step`` into ``path``; nothing without losses."""
    train, validation = (
        [(r["step"], r[key]) for r in records if r.get(key) is not None] for key in ("loss", "eval_loss")
    )
    if not train and not validation:
        return
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), dpi=120)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel="step", ylabel="loss per token", title="Loss")
    smooth = len(train) >= _SMOOTHED_FROM
    if train:
        marker = "o" if len(train) == 1 else None  # a point alone draws no line
        axes.plot(*zip(*train, strict=True), color="C0", marker=marker, alpha=0.35 if smooth else 1, label="train")
    if smooth:
        axes.plot(*zip(*_smoothed(train), strict=True), color="C0", label="train, running mean")
    if validation:
        axes.plot(*zip(*validation, strict=True), color="C1", marker="o", label="validation")
    axes.set_ylim(bottom=min(0.0, *(loss for _step, loss in (*train, *validation))))  # that of GRPO is below 0, too
    axes.grid(alpha=0.3)
    axes.legend(loc="upper right")  # where a falling loss leaves room; "best" looks at every point
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
