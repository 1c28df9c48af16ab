"""DeepSpeed's configuration for a run: ZeRO stages 1 to 3."""

from __future__ import annotations

import importlib.util
from typing import Any

from trainer.base_model import device
from trainer.config.schema import TrainConfig
from trainer.config.training import ZERO, Strategy
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
