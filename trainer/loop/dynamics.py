"""Lets a method with dynamics of its own act at every optimizer step."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trainer.methods.dynamics import Dynamics


class DynamicsCallback(TrainerCallback):  # type: ignore[misc]
    """Calls ``dynamics`` after each step, when the gradients of all its accumulated batches are still there."""

    def __init__(self, dynamics: Dynamics) -> None:
        self._dynamics = dynamics

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """transformers counts the step only later."""
        self._dynamics.after_step(state.global_step + 1)
