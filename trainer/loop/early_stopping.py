"""Early stopping: the end of a run whose validation loss no longer improves.

The decision is computed from the logged evaluations alone, which checkpoints hold: a resumed run decides as the
uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


def stale_evaluations(losses: Iterable[float], min_delta: float = 0.0) -> int:
    """How many of the last ``losses`` lie no more than ``min_delta`` below the best before them.

    Smaller improvements that add up to more than ``min_delta`` count as one. A loss that is not a number is no
    improvement.
    """
    best, stale = float("inf"), 0
    for loss in losses:
        if loss < best - min_delta:
            best, stale = loss, 0
        else:
            stale += 1
    return stale


class EarlyStopping(TrainerCallback):  # type: ignore[misc]
    """Ends training after ``patience`` evaluations without improvement, with a checkpoint."""

    def __init__(self, patience: int, min_delta: float) -> None:
        self._patience = patience
        self._min_delta = min_delta

    def is_over(self, history: Sequence[Mapping[str, Any]]) -> bool:
        """Whether a run with this log ``history`` has ended."""
        losses = (entry["eval_loss"] for entry in history if "eval_loss" in entry)
        return stale_evaluations(losses, self._min_delta) >= self._patience

    def reason(self) -> str:
        """Why it ended the run, in words."""
        by = f" by more than {self._min_delta:g}" if self._min_delta else ""
        return f"the validation loss has not improved{by} in {self._patience} evaluations"

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """The evaluation is in the history already."""
        if self.is_over(state.log_history):
            control.should_save = True
            control.should_training_stop = True
