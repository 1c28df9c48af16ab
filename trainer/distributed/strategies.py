"""How a run is divided among processes: DeepSpeed's configuration, and what cannot be divided.

What cannot be trained in several processes is said before anything is done.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import msgspec

from trainer.base_model import device
from trainer.config.schema import DIVIDED, ZERO, Strategy, TrainConfig
from trainer.distributed.launch import process_count
from trainer.errors import ConfigError


def deepspeed_config(config: TrainConfig) -> dict[str, Any] | None:
    """What transformers hands to DeepSpeed; None for other strategies. ``auto`` is filled in from the run.

    Stage 1 divides the optimizer's state among the processes, 2 the gradients too, 3 the parameters too.
    """
    strategy: Strategy = config.training.strategy
    if strategy not in ZERO:
        return None
    return {
        "zero_optimization": {"stage": ZERO.index(strategy) + 1, "overlap_comm": False},
        "bf16": {"enabled": "auto"},
        "fp16": {"enabled": "auto"},
        "gradient_clipping": "auto",
        "gradient_accumulation_steps": "auto",
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "zero_allow_untested_optimizer": True,
    }


def require_deepspeed(strategy: Strategy) -> None:
    """Raise ConfigError when ``strategy`` needs DeepSpeed and it is not installed, or not usable here."""
    if strategy not in ZERO:
        return
    if device().type == "cpu":
        raise ConfigError(f"training.strategy: {strategy} needs CUDA devices; on a CPU use fsdp or ddp")
    if importlib.util.find_spec("deepspeed") is None:
        raise ConfigError(
            f"training.strategy: {strategy} needs DeepSpeed: pip install 'hotswap[deepspeed]', or use fsdp"
        )


def undivided(config: TrainConfig) -> tuple[TrainConfig, str]:
    """``config`` as one process trains it, which has nobody to divide a run with, and what to say of that."""
    strategy = config.training.strategy
    if strategy == "ddp" or process_count() > 1:
        return config, ""
    needs = " and needs no DeepSpeed" if strategy in ZERO else ""
    word = f"strategy {strategy}: one process divides nothing{needs}; --nproc N starts several"
    return msgspec.structs.replace(config, training=msgspec.structs.replace(config.training, strategy="ddp")), word


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
    if config.reading and config.training.strategy != "ddp":
        raise ConfigError(f"training.strategy: {config.reading.KIND} is not divided among processes; use ddp")
    batch = config.training.batch_size
    if batch % many:
        raise ConfigError(
            f"training.batch_size: {batch} rows cannot be divided among {many} processes; use a multiple of {many} "
            "(batch_size is that of all processes together)"
        )


def _check_strategy(config: TrainConfig, many: int) -> None:
    strategy, training = config.training.strategy, config.training
    if strategy == "ddp" or many == 1:
        return
    require_deepspeed(strategy)
    if strategy == "fsdp" and training.dtype == "float16":
        raise ConfigError("training.dtype: fsdp trains in bfloat16 or float32; set one of them, or use ddp")
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
