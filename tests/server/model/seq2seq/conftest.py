"""Encoder-decoder bases and adapters for them, made once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.server.model.seq2seq.support import BASES, CONFIGS, make_seq2seq_adapter, make_seq2seq_base


@pytest.fixture(scope="session")
def s2s_base(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A base of ``BASES`` by name, saved when it is first asked for."""
    root = tmp_path_factory.mktemp("s2s-bases")

    def get(name: str) -> Path:
        if not (root / name).exists():
            make_seq2seq_base(root / name, **BASES[name])
        return root / name

    return get


@pytest.fixture(scope="session")
def s2s_adapters(
    s2s_base: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], dict[str, Path]]:
    """The adapters of ``CONFIGS`` for a base of ``BASES``, by name."""
    root = tmp_path_factory.mktemp("s2s-adapters")

    def get(base: str) -> dict[str, Path]:
        paths = {name: root / base / name for name in CONFIGS}
        for seed, (name, path) in enumerate(paths.items()):
            if not path.exists():
                make_seq2seq_adapter(s2s_base(base), path, name, seed=seed)
        return paths

    return get
