"""What happens beside the training steps: records, progress, stopping early or in good order, a method's own part.

Early stopping is computed from the logged evaluations alone, which checkpoints hold: a resumed run decides as the
uninterrupted one.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trainer.distributed import processes
from trainer.loop.records import RecordSink
from trainer.methods.adalora import AdaLoraDynamics
from trainer.progress import Display, StepMetrics

_PREFERENCE_METRICS = ("kl", "accuracy", "margin", "reward")


class RecordCallback(TrainerCallback):  # type: ignore[misc]
    """Writes records of ``trainer``, which counts its tokens, and shows progress. ``scores`` are names of its own."""

    def __init__(
        self, records: Sequence[RecordSink], display: Display, trainer: Any, scores: Sequence[str] = ()
    ) -> None:
        self._records = records
        self._display = display
        self._trainer = trainer
        self._scores = scores
        self._began = self._evaluating = 0.0
        self._first_step = 0
        self._mark = (0.0, 0)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Start the clock."""
        self._began = time.monotonic()
        self._mark = (self._began, self._trainer.tokens_seen)
        self._first_step = state.global_step
        self._display.start(state.max_steps, state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Let the last step be logged, whatever training.log_steps says, and the first that is evaluated."""
        if state.global_step >= state.max_steps or control.should_training_stop:
            control.should_log = True
        elif control.should_evaluate and not any("loss" in entry for entry in state.log_history):
            control.should_log = True  # it may be the last step, by early stopping

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, float], **_: Any
    ) -> None:
        """Record what transformers logs. Raises TrainingError for a validation loss that is not finite."""
        if "loss" in logs:
            self._record_step(args, state, logs)
        elif "eval_loss" in logs:
            scores = {f"eval_{name}": logs[f"eval_{name}"] for name in self._scores if f"eval_{name}" in logs}
            record = {"step": state.global_step, "epoch": state.epoch, "eval_loss": logs["eval_loss"]}
            self._append({**record, **scores, **_others(logs)})
            said = "".join(f"  {name.removeprefix('eval_')} {value:.4g}" for name, value in scores.items())
            self._display.message(
                f"step {state.global_step}/{state.max_steps}  validation loss {logs['eval_loss']:.4f}{said}"
            )
            self._mark = (time.monotonic(), self._trainer.tokens_seen)  # an evaluation is no training time
            self._trainer.check_validation(logs["eval_loss"])

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Leave the terminal in order."""
        self._display.stop()

    def _append(self, record: dict[str, Any]) -> None:
        for records in self._records:
            records.append(record)

    def _record_step(self, args: TrainingArguments, state: TrainerState, logs: dict[str, float]) -> None:
        now, tokens = time.monotonic(), self._trainer.tokens_seen
        before, tokens_before = self._mark
        self._mark = (now, tokens)
        done = state.global_step - self._first_step
        metrics = StepMetrics(
            step=state.global_step,
            loss=logs["loss"],
            epoch=state.epoch or 0.0,
            learning_rate=logs.get("learning_rate", 0.0),
            tokens_per_second=(tokens - tokens_before) / max(now - before, 1e-9),
            seconds_left=(now - self._began) / done * (state.max_steps - state.global_step),
            peak_memory_mb=peak_memory_mb(),
        )
        self._append(
            {
                "step": state.global_step,
                "epoch": state.epoch,
                "loss": logs["loss"],
                "learning_rate": logs.get("learning_rate"),
                "grad_norm": logs.get("grad_norm"),
                "tokens_per_second": round(metrics.tokens_per_second, 1),
                "tokens": tokens - tokens_before,
                "seconds": round(now - self._began, 3),
                "peak_memory_mb": round(metrics.peak_memory_mb, 1),
                **_others(logs),
            }
        )
        self._display.update(metrics)


def _others(logs: dict[str, float]) -> dict[str, float]:
    """Figures of the trainer's own, such as those of preference training."""
    return {
        name: value for name, value in logs.items() if "/" in name or name.removeprefix("eval_") in _PREFERENCE_METRICS
    }


class StopCallback(TrainerCallback):  # type: ignore[misc]
    """Ends training after the current step, with a checkpoint, once ``request`` was called in any process."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def request(self, signum: int) -> None:
        """Ask for the end."""
        self.signal = signum

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Ask transformers for a checkpoint and the end, unless the run is over anyway."""
        self.signal = processes.largest(self.signal or 0) or None
        if self.signal is not None and state.global_step < state.max_steps:
            control.should_save = True  # after an evaluation that is due: the resumed run must find it in the history
            control.should_training_stop = True


@contextmanager
def stop_on_signals(stop: StopCallback) -> Iterator[None]:
    """SIGINT and SIGTERM ask ``stop`` for the end; a second one acts as it did before. For the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}

    def handle(signum: int, _frame: FrameType | None) -> None:
        stop.request(signum)
        for known, handler in before.items():
            signal.signal(known, handler)
        if processes.is_main():
            # safe in a handler
            os.write(2, b"\nstopping after this step, with a checkpoint (once more to stop at once)\n")

    for signum in before:
        signal.signal(signum, handle)
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def peak_memory_mb() -> float:
    """The most memory used so far: of the CUDA device where there is one, else resident memory of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


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


class DynamicsCallback(TrainerCallback):  # type: ignore[misc]
    """Calls ``dynamics`` after each step, when the gradients of all its accumulated batches are still there."""

    def __init__(self, dynamics: AdaLoraDynamics) -> None:
        self._dynamics = dynamics

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """transformers counts the step only later."""
        self._dynamics.after_step(state.global_step + 1)
