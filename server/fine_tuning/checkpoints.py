"""The checkpoints that a run kept: their packages, what was measured there, and which of them is the result."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.fine_tuning.progress import is_summary, measured

_FOLDER = re.compile(r"checkpoint-(\d+)")
PACKAGE = "adapter"


@dataclass(frozen=True)
class KeptCheckpoint:
    """One of them: the step after which it was saved, its package, and the losses of that step."""

    step: int
    package: Path
    figures: dict[str, float]


def kept_checkpoints(output: Path, records: Sequence[Mapping[str, Any]]) -> list[KeptCheckpoint]:
    """Those in the ``output`` of a run that have packages, oldest first. Blocks on the disk."""
    found = [
        KeptCheckpoint(int(match[1]), path / PACKAGE, figures_at(records, int(match[1])))
        for path in output.glob("checkpoint-*")
        if (match := _FOLDER.fullmatch(path.name)) and (path / PACKAGE).is_dir()
    ]
    return sorted(found, key=lambda one: one.step)


def figures_at(records: Sequence[Mapping[str, Any]], step: int) -> dict[str, float]:
    """What was measured at a step."""
    figures: dict[str, float] = {}
    for record in records:
        if record["step"] == step and not is_summary(record):
            figures.update(measured(record))
    if "valid_loss" in figures:
        figures["full_valid_loss"] = figures["valid_loss"]
    return figures


def loss_before(records: Sequence[Mapping[str, Any]]) -> float | None:
    """The loss on the validation file of what training began with."""
    return next((r["eval_loss"] for r in records if r["step"] == 0 and r.get("eval_loss") is not None), None)


def result_step(records: Sequence[Mapping[str, Any]], steps: int) -> int:
    """The step that the result is of: the best by the validation file, else the last of ``steps``."""
    losses = [(record["eval_loss"], record["step"]) for record in records if record["step"] and record.get("eval_loss")]
    return int(min(losses)[1]) if losses else steps
