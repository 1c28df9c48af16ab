"""The optimizer's state of a model that is divided among processes, in checkpoints: whole, as one process has it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.distributed.shards import divided_like, whole

_OPTIMIZER, _SCHEDULER = "optimizer.pt", "scheduler.pt"  # transformers' names


def save_state(trainer: Any, directory: Path) -> None:
    """Write the states of optimizer and schedule of ``trainer``. For all processes; the first one writes."""
    state = trainer.optimizer.state_dict()
    gathered = {
        number: {name: whole(value).cpu() if isinstance(value, Tensor) else value for name, value in entries.items()}
        for number, entries in state["state"].items()
    }
    if trainer.args.should_save:
        torch.save({**state, "state": gathered}, directory / _OPTIMIZER)
        torch.save(trainer.lr_scheduler.state_dict(), directory / _SCHEDULER)


def load_state(trainer: Any, directory: Path) -> None:
    """Go on with the states that ``directory`` holds. For all processes."""
    state = torch.load(directory / _OPTIMIZER, map_location="cpu", weights_only=True)
    parameters = [parameter for group in trainer.optimizer.param_groups for parameter in group["params"]]
    for number, entries in state["state"].items():
        entries |= {name: divided_like(parameters[number], value) for name, value in entries.items()}
    trainer.optimizer.load_state_dict(state)
    trainer.lr_scheduler.load_state_dict(torch.load(directory / _SCHEDULER, weights_only=True))
