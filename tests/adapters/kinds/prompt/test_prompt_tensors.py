"""Packages of what stands before the prompt that do not fit the base: each says why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from adapters.compiling import compile_package
from adapters.errors import AdapterError, BaseMismatchError, PackageError
from adapters.ops import Adapter
from adapters.package.reading import read_package
from tests.adapters.support import SMALL_SPEC, write_raw

PREFIX = {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 3}
PROMPT = {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 3}


def compile_raw(path: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> Adapter:
    return compile_package(read_package(write_raw(path, config, tensors)), SMALL_SPEC)


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Tensor], type[AdapterError], str]] = {
    "prefix of another shape": (PREFIX, {"prompt_embeddings": torch.ones(3, 30)}, PackageError, r"expected \[3, 32\]"),
    "prefix with fewer tokens": (PREFIX, {"prompt_embeddings": torch.ones(2, 32)}, PackageError, r"expected \[3, 32\]"),
    "prefix of more layers": (
        {**PREFIX, "num_layers": 4},
        {"prompt_embeddings": torch.ones(3, 64)},
        BaseMismatchError,
        "number of layers 4; this server serves 'small', whose number of layers is 2",
    ),
    "prefix of more heads": (
        {**PREFIX, "num_attention_heads": 8},
        {"prompt_embeddings": torch.ones(3, 32)},
        BaseMismatchError,
        "key-value heads 8",
    ),
    "prefix with company": (
        PREFIX,
        {"prompt_embeddings": torch.ones(3, 32), "extra": torch.ones(1)},
        PackageError,
        "'extra' is unknown",
    ),
    "prompt of another hidden size": (
        {**PROMPT, "token_dim": 24},
        {"prompt_embeddings": torch.ones(3, 24)},
        BaseMismatchError,
        "hidden size 24",
    ),
    "prompt of another shape": (PROMPT, {"prompt_embeddings": torch.ones(3, 24)}, PackageError, r"expected \[3, 16\]"),
    "prompt without its tensor": (PROMPT, {"prompt": torch.ones(3, 16)}, PackageError, "is unknown"),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_refused(name: str, tmp_path: Path) -> None:
    config, tensors, error, words = REFUSED[name]
    with pytest.raises(error, match=words):
        compile_raw(tmp_path / "p", config, tensors)


def test_the_sound_package_that_the_others_vary_is_accepted(tmp_path: Path) -> None:
    assert compile_raw(tmp_path / "q", PREFIX, {"prompt_embeddings": torch.ones(3, 32)}).num_virtual_tokens == 3
    assert compile_raw(tmp_path / "r", PROMPT, {"prompt_embeddings": torch.ones(3, 16)}).num_virtual_tokens == 3
