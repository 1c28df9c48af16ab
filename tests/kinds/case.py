"""One adapter configuration to test with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.nn import Parameter

from tests.factory import make_adapter

Fill = Callable[[str, Parameter], None]


@dataclass(frozen=True)
class Case:
    """``config`` makes the peft configuration (for the tiny llama of ``tests.factory``).

    Trained parameters are drawn from N(0, ``std``), unless ``fill`` sets them (name, parameter): kinds whose parameters
    are factors near one, or parts of a matrix that must stay invertible.
    """

    config: Callable[[], Any]
    std: float = 0.1
    fill: Fill | None = None

    def save(self, base: Path, path: Path, seed: int = 1) -> Path:
        """Let peft save a random adapter of this configuration for ``base`` into ``path``; returns ``path``."""
        return make_adapter(base, path, self.config(), seed=seed, std=self.std, fill=self.fill)
