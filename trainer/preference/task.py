"""What every kind of preference training is to a run, and what those have in common that end in an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from typing_extensions import override

from adapters.package.manifest import DataRef
from trainer.base_model import Base
from trainer.config.schema import TrainConfig
from trainer.export.result import export_result
from trainer.preference.preference_data import PreferenceData


class PreferenceTask(Protocol):
    """One kind of preference training of one base."""

    data: PreferenceData[Any]

    def compute_reference(self, model: Any) -> None:
        """Let the reference be ``model`` as it is now: ask it for all that will be needed of it."""
        ...

    def num_rows(self) -> int:
        """Rows of an epoch, from which steps are counted."""
        ...

    def make_trainer(self, model: Any, arguments: Any, callbacks: list[Any]) -> Any:
        """The trainer of ``model``, the base with an adapter."""
        ...

    def evaluate(self, trainer: Any) -> dict[str, float]:
        """Scores of the held-out rows by the trained model."""
        ...

    def export(self, trainer: Any, metrics: dict[str, float]) -> Path:
        """Write what was trained into the output directory; returns where it is."""
        ...


class AdapterTask(PreferenceTask):
    """What ends in an adapter's package."""

    _config: TrainConfig
    _base: Base

    @override
    def export(self, trainer: Any, metrics: dict[str, float]) -> Path:
        """Write the adapter\'s package. Full fine-tuning leaves a base instead."""
        data = DataRef(sha256=self.data.sha256, rows=len(self.data.train), tools=self.data.tools)
        return export_result(trainer.trained, self._base, self._config, data=data, metrics=metrics)
