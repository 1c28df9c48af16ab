"""What several test folders share: one tiny base and adapters of every served kind, saved by peft itself."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from pathlib import Path

import pytest
import torch
from transformers.utils import logging as transformers_logging

from tests.factory import make_base

torch.set_num_threads(1)
transformers_logging.disable_progress_bar()


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer llama with biases, in fp32."""
    return make_base(tmp_path_factory.mktemp("base") / "tiny", attention_bias=True, mlp_bias=True)


@pytest.fixture(scope="session")
def tiny_adapters(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Adapters of every served kind for ``tiny_base``, by name."""
    from tests.kinds import CASES  # imports peft

    root = tmp_path_factory.mktemp("adapters")
    return {name: case.save(tiny_base, root / name, seed=i) for i, (name, case) in enumerate(CASES.items())}
