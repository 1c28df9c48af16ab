"""What several test folders share: one tiny base and adapters of every served kind, saved by peft itself."""

from __future__ import annotations

import gc
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from transformers.utils import logging as transformers_logging

from tests.factory import make_base

torch.set_num_threads(1)
transformers_logging.disable_progress_bar()


def pytest_collection_finish() -> None:
    """What imports have made stays: accelerate collects garbage after every run, and would look at all of it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer llama with biases, in fp32."""
    return make_base(tmp_path_factory.mktemp("base") / "tiny", attention_bias=True, mlp_bias=True)


class _Saved(Mapping[str, Path]):
    """Adapters by name, each saved by peft when it is first asked for."""

    def __init__(self, base: Path, root: Path) -> None:
        from tests.kinds import CASES  # imports peft

        self._cases, self._base, self._root = CASES, base, root

    def __getitem__(self, name: str) -> Path:
        path = self._root / name
        if not path.exists():
            self._cases[name].save(self._base, path, seed=list(self._cases).index(name))
        return path

    def __iter__(self) -> Iterator[str]:
        return iter(self._cases)

    def __len__(self) -> int:
        return len(self._cases)


@pytest.fixture(scope="session")
def tiny_adapters(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Adapters of every served kind for ``tiny_base``, by name."""
    return _Saved(tiny_base, tmp_path_factory.mktemp("adapters"))
