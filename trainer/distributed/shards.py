"""A model divided among the processes (FSDP2, torch's ``fully_shard``): each holds a part of every parameter.

accelerate divides models on accelerators only; this is the same on all devices. In checkpoints parameters and the
optimizer's state are whole, as one process has them.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from trainer.base_model import device
from trainer.distributed.launch import process_count


def shard(model: nn.Module, compute_dtype: torch.dtype | None = None) -> None:
    """Divide ``model``, which is gathered layer by layer when it runs, in ``compute_dtype`` (None: as it is)."""
    mesh = init_device_mesh(device().type, (process_count(),))
    policy = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=torch.float32 if compute_dtype else None)
    for layer in _layers(model):
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    model._is_accelerate_prepared = True  # type: ignore[assignment]  # accelerate would copy it to every process


def is_sharded(model: nn.Module) -> bool:
    """Whether ``model`` is divided among the processes."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def whole(parameter: Tensor) -> Tensor:
    """All of ``parameter``; every process must ask for it."""
    if isinstance(parameter, DTensor):
        return parameter.full_tensor()
    with _gathered(parameter):
        return parameter.detach().clone()


@torch.no_grad()
def put(parameter: Tensor, value: Tensor) -> None:
    """Let ``parameter`` be ``value``, which is whole; every process must do so."""
    with _gathered(parameter, write=True):
        parameter.copy_(divided_like(parameter, value))


def shape_of(parameter: Tensor) -> torch.Size:
    """The shape of all of ``parameter``."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))  # DeepSpeed leaves nothing of its own shape


def local_part(parameter: Tensor) -> Tensor:
    """What this process has of ``parameter``."""
    if isinstance(parameter, DTensor):
        return parameter.to_local()
    part: Tensor = getattr(parameter, "ds_tensor", parameter)
    return part


def divided_like(parameter: Tensor, value: Tensor) -> Tensor:
    """The whole ``value`` divided among processes as ``parameter`` is, when it has its shape; else unchanged."""
    if not isinstance(parameter, DTensor) or value.shape != parameter.shape:
        return value
    return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)


def _gathered(parameter: Tensor, *, write: bool = False) -> AbstractContextManager[Any]:
    """Within, a parameter that DeepSpeed's ZeRO-3 has divided is whole; ``write``: what the first process makes it."""
    if not hasattr(parameter, "ds_id"):
        return nullcontext()
    import deepspeed

    context: AbstractContextManager[Any] = deepspeed.zero.GatheredParameters(
        [parameter], modifier_rank=0 if write else None
    )
    return context


def _layers(model: nn.Module) -> list[Any]:
    """The decoder's layers: the longest list of modules."""
    lists = [list(module) for module in model.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=len, default=[])


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
