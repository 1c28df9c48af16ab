"""What cannot be trained in several processes, said before anything is done."""

from __future__ import annotations

from trainer.config.schema import TrainConfig
from trainer.config.training import DIVIDED
from trainer.distributed.launch import process_count
from trainer.distributed.strategies import require_deepspeed
from trainer.errors import ConfigError

_OPTIMIZERS = ("adamw", "sgd")
_WHOLE = ("adalora",)  # its allocator weighs single components by their gradients


def check_processes(config: TrainConfig, nproc: int | None = None) -> None:
    """Raise ConfigError unless ``config`` can be trained in ``nproc`` processes (None: as many as there are)."""
    many = process_count() if nproc is None else nproc
    _check_strategy(config, many)
    if many == 1:
        return
    if config.preference:
        raise ConfigError("preference: training from preferences works in one process; leave out --nproc")
    batch = config.training.batch_size
    if batch % many:
        raise ConfigError(
            f"training.batch_size: {batch} rows cannot be divided among {many} processes; use a multiple of {many} "
            "(batch_size is that of all processes together)"
        )


def _check_strategy(config: TrainConfig, many: int) -> None:
    strategy, training = config.training.strategy, config.training
    if strategy == "ddp":
        return
    if many == 1:
        raise ConfigError(f"training.strategy: {strategy} divides a run among processes; add --nproc 2 or more")
    require_deepspeed(strategy)
    if config.method.KIND in _WHOLE:
        raise ConfigError(f"training.strategy: {config.method.KIND} needs its whole parameters; use ddp")
    if strategy in DIVIDED and training.quantize != "none":
        raise ConfigError(
            f"training.strategy: {strategy} cannot divide quantized weights; set training.quantize to none, or use ddp"
        )
    if training.optimizer not in _OPTIMIZERS:
        raise ConfigError(
            f"training.optimizer: {training.optimizer} does not work on divided parameters; with {strategy} use "
            f"{' or '.join(_OPTIMIZERS)}"
        )
