"""What some methods do beside following the gradient: a penalty, work after every step, state of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from peft import PeftModel
from peft.tuners.adalora import AdaLoraModel
from torch import Tensor

from trainer.methods.adalora import AdaLoraDynamics


class Dynamics(Protocol):
    """A method's part in the training loop. Its state goes into checkpoints."""

    def penalty(self) -> Tensor:
        """A scalar whose gradient is added to that of the mean loss."""
        ...

    def after_step(self, step: int) -> None:
        """Called after optimizer step number ``step`` (from 1), before gradients are cleared."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Everything beside the trained parameters that later steps depend on."""
        ...

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Be as when ``state`` was taken."""
        ...


def dynamics_of(model: Any) -> Dynamics | None:
    """The dynamics of the method in ``model``; None for most."""
    if isinstance(model, PeftModel) and isinstance(model.base_model, AdaLoraModel):
        return AdaLoraDynamics(model)
    return None
