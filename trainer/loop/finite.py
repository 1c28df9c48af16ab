"""Stops a run at the first loss, gradient or weight that is not finite, before anything of it is saved.

From there on all is NaN: later checkpoints would take the place of good ones, and a resumed run would go on from
nothing. A step costs a copy of two numbers from the device, which is not waited for: what they say of a step on a GPU
is known a step later, or where something is logged, evaluated or saved.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.distributed import processes
from trainer.distributed.launch import process_count
from trainer.distributed.shards import local_part
from trainer.errors import TrainingError
from trainer.loop.checkpoint import checkpoints
from trainer.methods import trainable_parameters


class NotFiniteError(TrainingError):
    """Training has left the finite numbers. ``record`` is what the metrics are to say of the step."""

    def __init__(self, message: str, record: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.record = record


@dataclass(frozen=True)
class StepNumbers:
    """The loss of a step, summed over its batches, and the norm of its gradient."""

    step: int
    loss: float
    grad_norm: float


class StepWatch:
    """The numbers of steps, on their way from the device."""

    def __init__(self) -> None:
        self._loss: Tensor | None = None
        self._coming: deque[tuple[int, Tensor, torch.cuda.Event | None]] = deque()

    def add(self, loss: Tensor) -> None:
        """Count the ``loss`` of one batch to the step that runs."""
        loss = loss.detach().float()
        self._loss = loss if self._loss is None else self._loss + loss

    def end_step(self, step: int, grad_norm: Tensor | float) -> None:
        """``step`` has this norm of its gradient; the next batch is of another one."""
        assert self._loss is not None, "a step has a batch"
        norm = torch.as_tensor(grad_norm, dtype=torch.float32, device=self._loss.device)
        numbers = torch.stack((self._loss, norm)).to("cpu", non_blocking=True)
        arrived = None
        if self._loss.is_cuda:
            arrived = torch.cuda.current_stream(self._loss.device).record_event()
        self._coming.append((step, numbers, arrived))
        self._loss = None

    def first_not_finite(self, *, wait: bool) -> StepNumbers | None:
        """The first step with such a number, of those that have arrived; of all with ``wait``."""
        while self._coming:
            step, numbers, arrived = self._coming[0]
            if arrived is not None and not arrived.query():  # type: ignore[no-untyped-call]
                if not wait:
                    return None
                arrived.synchronize()
            self._coming.popleft()
            loss, grad_norm = numbers.tolist()
            if not (math.isfinite(loss) and math.isfinite(grad_norm)):
                return StepNumbers(step, loss, grad_norm)
        return None


class FiniteTraining:
    """To be mixed in before transformers' Trainer and what saves checkpoints. NotFiniteError is raised in every process
    or in none."""

    args: Any
    state: Any
    control: Any
    model: Any
    accelerator: Any
    _watch: StepWatch | None = None

    @property
    def watch(self) -> StepWatch:
        """That of this run."""
        self._watch = self._watch or StepWatch()
        return self._watch

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """As transformers', with a plain word where a library fails on numbers that are not finite."""
        try:
            loss: Tensor = super().training_step(*args, **kwargs)  # type: ignore[misc]
        except (RuntimeError, ValueError) as error:
            if "nan" not in str(error) and _are_finite(trainable_parameters(self.model).values()):
                raise
            raise self._not_finite("the model's numbers are no longer finite", self.state.global_step + 1) from error
        self.watch.add(loss)
        return loss

    def require_finite(self) -> None:
        """Raise NotFiniteError unless all steps so far and all trained weights are finite."""
        self._check_steps(wait=True)
        good = _are_finite(trainable_parameters(self.model).values())
        if processes.largest(int(not good)):
            raise self._not_finite("a trained weight is no longer finite", self.state.global_step)

    def check_validation(self, loss: float) -> None:
        """Raise NotFiniteError for a validation ``loss`` that is none, the same in all processes."""
        if not math.isfinite(loss):
            raise self._not_finite(f"the validation loss became {loss}", self.state.global_step)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)  # type: ignore[misc]
        scaled = getattr(self.accelerator, "scaler", None) is not None  # it looks for a scale, and skips such steps
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        self.watch.end_step(self.state.global_step + 1, 0.0 if norm is None or scaled else norm)
        self._check_steps(wait=False)
        return norm

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        if self.control.should_log or self.control.should_evaluate or self.control.should_save:
            self._check_steps(wait=True)
        super()._maybe_log_save_evaluate(*args, **kwargs)  # type: ignore[misc]

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.require_finite()
        super()._save_checkpoint(model, trial)  # type: ignore[misc]

    def _check_steps(self, *, wait: bool) -> None:
        together = process_count() > 1
        bad = self.watch.first_not_finite(wait=wait or together)
        if not processes.largest(int(bad is not None)):
            return
        if bad is None:
            raise self._not_finite("the loss of another process is no longer finite", self.state.global_step)
        is_loss = not math.isfinite(bad.loss)
        what = f"the loss became {bad.loss}" if is_loss else f"the norm of the gradient became {bad.grad_norm}"
        record = {"step": bad.step, "loss": bad.loss, "grad_norm": bad.grad_norm}
        raise self._not_finite(what, bad.step, record, learned=bad.step > 1 or not is_loss)

    def _not_finite(
        self, what: str, step: int, record: dict[str, Any] | None = None, *, learned: bool = True
    ) -> NotFiniteError:
        found = checkpoints(Path(self.args.output_dir))
        advice = f"lower training.learning_rate (now {self.args.learning_rate:g}) or set training.warmup"
        if not learned:
            advice = "nothing had been learned yet: look at the base's weights, and set training.dtype to float32"
        if found:
            advice += f"; {found[-1]} is the last good one, which start_from can begin another run with"
        return NotFiniteError(f"{what} at step {step}, and the run was stopped; {advice}", record)


@torch.no_grad()
def _are_finite(values: Iterable[Tensor]) -> bool:
    """Whether all that this process has of ``values`` is finite; the device is waited for once."""
    found = [local_part(value).isfinite().all() for value in values]
    return not found or bool(torch.stack([one.to(found[0].device) for one in found]).all())
