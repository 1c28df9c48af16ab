"""Packages of kinds that stand before the prompt that are not what they say, or ask for what is not served."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from adapters.compiling import compile_package
from adapters.errors import AdapterError, BaseMismatchError, PackageError, UnsupportedKindError
from adapters.kinds.registry import KINDS
from adapters.limits import DEFAULT_LIMITS
from adapters.package.reading import read_package
from tests.adapters.support import SMALL_SPEC, write_raw

ROWS = ["PROMPT_TUNING", "P_TUNING", "CPT", "MULTITASK_PROMPT_TUNING"]
KEYS = ["PREFIX_TUNING", "CARTRIDGE"]


def config(kind: str, **options: Any) -> dict[str, Any]:
    return {"peft_type": kind, "task_type": "CAUSAL_LM", "num_virtual_tokens": 3, **options}


def tensors(kind: str) -> dict[str, Tensor]:
    found = {"prompt_embeddings": torch.ones(3, 32 if kind in KEYS else 16)}
    if kind == "MULTITASK_PROMPT_TUNING":
        found |= {"prefix_task_cols": torch.ones(1, 3, 1), "prefix_task_rows": torch.ones(1, 1, 16)}
    return found


@pytest.mark.parametrize("kind", [*ROWS, *KEYS])
def test_the_sound_package_is_accepted(kind: str, tmp_path: Path) -> None:
    package = read_package(write_raw(tmp_path / "p", config(kind), tensors(kind)))
    assert compile_package(package, SMALL_SPEC).num_virtual_tokens == 3
    assert compile_package(package, SMALL_SPEC).kind == package.config.KIND


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Tensor | None], type[AdapterError], str]] = {
    "no tensor": ({}, {"prompt_embeddings": None}, PackageError, "'prompt_embeddings' is missing|holds no tensors"),
    "company": ({}, {"extra": torch.ones(1)}, PackageError, "'extra' is unknown"),
    "another shape": ({}, {"prompt_embeddings": torch.ones(3, 10)}, PackageError, r"has shape \[3, 10\]"),
    "fewer tokens": ({"num_virtual_tokens": 2}, {}, PackageError, r"expected \[2, "),
    "no tokens": ({"num_virtual_tokens": 0}, {}, PackageError, "num_virtual_tokens is 0"),
    "absurd size": ({"num_virtual_tokens": 10**6}, {}, PackageError, "1 to 4096 are read"),
    "encoder-decoder": ({"num_transformer_submodules": 2}, {}, BaseMismatchError, "encoder-decoder"),
    "another base": ({"token_dim": 24}, {}, BaseMismatchError, "24"),
    "unknown key": ({"surprise": 1}, {}, PackageError, "'surprise'"),
}


@pytest.mark.parametrize("kind", [*ROWS, *KEYS])
@pytest.mark.parametrize("name", REFUSED)
def test_refused_of_every_kind(kind: str, name: str, tmp_path: Path) -> None:
    refuse(kind, REFUSED[name], tmp_path)


def refuse(
    kind: str, case: tuple[dict[str, Any], dict[str, Tensor | None], type[AdapterError], str], path: Path
) -> None:
    options, changed, error, words = case
    given = {name: tensor for name, tensor in {**tensors(kind), **changed}.items() if tensor is not None}
    with pytest.raises(error, match=words):
        compile_package(read_package(write_raw(path / "p", config(kind, **options), given)), SMALL_SPEC)


MULTITASK: dict[str, tuple[dict[str, Any], dict[str, Tensor | None], type[AdapterError], str]] = {
    "many tasks": ({"num_tasks": 3}, {}, UnsupportedKindError, "3 tasks.*one adapter a task"),
    "no tasks": ({"num_tasks": 0}, {}, UnsupportedKindError, "0 tasks"),
    "no rank": ({"num_ranks": 0}, {}, PackageError, "num_ranks is 0"),
    "absurd rank": ({"num_ranks": 10**9}, {}, PackageError, "1 to 1024"),
    "another rank": (
        {"num_ranks": 2},
        {},
        PackageError,
        r"'prefix_task_cols' has shape \[1, 3, 1\], expected \[1, 3, 2",
    ),
    "no columns": ({}, {"prefix_task_cols": None}, PackageError, "'prefix_task_cols' is missing"),
    "no rows": ({}, {"prefix_task_rows": None}, PackageError, "'prefix_task_rows' is missing"),
    "two tasks' rows": ({}, {"prefix_task_rows": torch.ones(2, 1, 16)}, PackageError, r"expected \[1, 1, 16\]"),
    "overflow": (
        {},
        {"prefix_task_rows": torch.full((1, 1, 16), 3e38), "prefix_task_cols": torch.full((1, 3, 1), 3e38)},
        PackageError,
        "not finite",
    ),
}


@pytest.mark.parametrize("name", MULTITASK)
def test_refused_multitask(name: str, tmp_path: Path) -> None:
    refuse("MULTITASK_PROMPT_TUNING", MULTITASK[name], tmp_path)


def test_cpt_counts_its_tokens(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "p", config("CPT", cpt_token_ids=[1, 2]), tensors("CPT"))
    with pytest.raises(PackageError, match="num_virtual_tokens is 3, and cpt_token_ids are 2"):
        read_package(path)


JSON = st.none() | st.integers() | st.floats() | st.sampled_from(["", "x", True, [], [1], {"a": 1}])


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from([*ROWS, *KEYS]),
    st.dictionaries(
        st.sampled_from(["num_virtual_tokens", "token_dim", "num_tasks", "num_ranks", "cpt_token_ids", "num_layers"]),
        JSON,
    ),
)
def test_any_values_are_read_or_refused_in_words(kind: str, options: dict[str, Any]) -> None:
    with contextlib.suppress(AdapterError):
        KINDS[kind].config.parse(config(kind, **options), DEFAULT_LIMITS)
