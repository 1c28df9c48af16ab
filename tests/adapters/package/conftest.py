"""A package to change."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.adapters.support import LORA_CONFIG, lora_tensors, write_raw


@pytest.fixture
def package(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    return write_raw(tmp_path / "package", LORA_CONFIG, lora_tensors())
