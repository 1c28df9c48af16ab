"""This process among those of the run: which it is, and how they keep in step.

The environment is torchrun's (RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT), whoever made it: our own
launcher, torchrun or accelerate. In a run of one process everything here does nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from trainer.base_model import device, local_rank
from trainer.distributed.launch import PEER_LOST
from trainer.distributed.launch import process_count as count
from trainer.distributed.launch import process_rank as rank
from trainer.errors import ConfigError, TrainerError, TrainingError

_WAIT = timedelta(hours=3)  # the others wait while the first one answers questions or exports
_BROKEN = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer", "Broken pipe", "store")

Value = TypeVar("Value")


def is_main() -> bool:
    """Whether this is the one process that shows progress and writes."""
    return rank() == 0


@contextmanager
def joined() -> Iterator[None]:
    """Be one of the run's processes within. TrainingError when another one ends first, ConfigError without a device."""
    if count() == 1:
        yield
        return
    _join()
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or any(word in str(error) for word in _BROKEN):
            raise TrainingError(PEER_LOST) from error
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _join() -> None:
    on = device()
    if on.type == "cuda":
        if local_rank() >= torch.cuda.device_count():
            raise ConfigError(
                f"--nproc: every process needs a CUDA device of its own, and there are {torch.cuda.device_count()}"
            )
        torch.cuda.set_device(on)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if on.type == "cuda" else "gloo", timeout=_WAIT)


def barrier() -> None:
    """Wait until all processes are here."""
    if count() > 1:
        dist.barrier()


def from_main(work: Callable[[], Value]) -> Value:
    """What ``work`` gives in the first process, which alone does it. All raise the TrainerError that it raises."""
    if count() == 1:
        return work()
    box: list[Any] = [None, None]
    if is_main():
        try:
            box = [work(), None]
        except TrainerError as error:
            box = [None, error]
    dist.broadcast_object_list(box, src=0)
    if box[1] is not None:
        raise box[1]
    value: Value = box[0]
    return value


def total(value: int) -> int:
    """The sum of ``value`` over all processes."""
    return int(_reduced(value, dist.ReduceOp.SUM))


def largest(value: int) -> int:
    """The largest ``value`` of all processes."""
    return int(_reduced(value, dist.ReduceOp.MAX))


def gathered(rows: Tensor) -> tuple[Tensor, int]:
    """``rows`` [n, width] of all processes [total, width], by their ranks, and how many those before this one have.

    The numbers of rows may differ. Gradients reach the rows in the process that they are of.
    """
    if count() == 1:
        return rows, 0
    own = torch.tensor([len(rows)], device=rows.device)
    told = [torch.empty_like(own) for _ in range(count())]
    dist.all_gather(told, own)
    counts = [int(one) for one in told]
    padded = torch.cat([rows, rows.new_zeros(max(counts) - len(rows), rows.shape[1])])
    parts: Tensor = _Gather.apply(padded)  # type: ignore[no-untyped-call]
    return torch.cat([part[:n] for part, n in zip(parts, counts, strict=True)]), sum(counts[: rank()])


class _Gather(torch.autograd.Function):
    """As many rows of each process, by ranks: [count(), n, width]. Their gradients are summed over all processes."""

    @staticmethod
    def forward(_ctx: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(count())]
        dist.all_gather(parts, rows.contiguous())
        return torch.stack(parts)

    @staticmethod
    def backward(_ctx: Any, *grads: Tensor) -> Tensor:
        grad = grads[0].contiguous()
        dist.all_reduce(grad)
        return grad[rank()]


def reseed(seed: int) -> None:
    """Let every process draw dropout and noise of its own; the model has been made alike in all of them before."""
    if count() > 1:
        torch.manual_seed(seed + rank())


def _reduced(value: int, operation: Any) -> int:
    if count() == 1:
        return value
    tensor = torch.tensor(value, device=device())
    dist.all_reduce(tensor, operation)
    return int(tensor)
