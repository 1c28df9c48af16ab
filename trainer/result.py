"""What a run ends in: an adapter's package, or a base after full fine-tuning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from adapters.manifest import DataRef
from trainer.base_model import Base
from trainer.config.methods import FullMethod
from trainer.config.schema import TrainConfig
from trainer.export import export_adapter
from trainer.full_export import export_base
from trainer.output import result_directory


def export_result(model: Any, base: Base, config: TrainConfig, *, data: DataRef, metrics: dict[str, float]) -> Path:
    """Write what ``model`` has learned into the output of ``config``, all or nothing; returns where it is.

    Raises TrainingError or CheckpointError.
    """
    export = export_base if isinstance(config.method, FullMethod) else export_adapter
    path = Path(config.output) / result_directory(config)
    export(model, base, config, path, data=data, metrics=metrics)
    return path
