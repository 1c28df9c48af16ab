"""The records of a run as TensorBoard's event files."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from trainer.errors import ConfigError

TENSORBOARD_DIR = "tensorboard"


def require_tensorboard() -> None:
    """Raise ConfigError when tensorboard is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        raise ConfigError(
            "training.tensorboard: tensorboard is an extra: pip install 'hotswap[tensorboard]', or set it to false"
        )


class TensorBoardFile:
    """Appends records to the event files in ``folder``."""

    def __init__(self, folder: Path, *, resume_step: int | None = None) -> None:
        """Go on after ``resume_step``: what TensorBoard holds of later steps is no longer shown."""
        from torch.utils.tensorboard import SummaryWriter

        purge = None if resume_step is None else resume_step + 1
        self._writer: Any = SummaryWriter(str(folder), purge_step=purge)

    def append(self, record: dict[str, Any]) -> None:
        """Write the numbers of ``record``, which must hold ``step``: eval_loss as eval/loss, others as train/NAME."""
        for name, value in record.items():
            if name != "step" and isinstance(value, int | float):
                tag = name.replace("eval_", "eval/") if name.startswith("eval_") else f"train/{name}"
                self._writer.add_scalar(tag, value, record["step"])
        self._writer.flush()
