"""MiSS packages that are not what they say, or ask for what is not served."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adapters.compiling import compile_package
from adapters.errors import PackageError
from adapters.limits import DEFAULT_LIMITS
from adapters.package.reading import read_package
from tests.adapters.kinds.sound import (
    SPEC,
    Refusal,
    SoundPackage,
    check_accepted,
    check_any_value,
    check_refusals_of_every_kind,
    check_refused,
)
from tests.adapters.support import write_raw

SOUND = {sound.kind: sound for sound in (SoundPackage("MISS", {"r": 3}, {"miss_block": torch.ones(3, 8)}),)}
REFUSED: list[Refusal] = [
    ("MISS", {"r": 0}, {}, PackageError, "r is 0"),
    ("MISS", {"r": 17}, {}, PackageError, "16 inputs, and r is 17"),
    ("MISS", {"init_weights": "mini", "mini_r": 3}, {}, PackageError, "8 outputs, no multiple of mini_r 3"),
    ("MISS", {"init_weights": "mini", "mini_r": 0}, {}, PackageError, "mini_r is 0"),
    ("MISS", {"init_weights": "mini", "mini_r": 4}, {}, PackageError, r"expected \[3, 4\]"),
    ("MISS", {"init_weights": "bat"}, {}, PackageError, "not made of blocks of r 3"),
    ("MISS", {"init_weights": "bat", "r": 4}, {}, PackageError, r"expected \[2, 4, 4\]"),
    ("MISS", {"init_weights": "other"}, {}, PackageError, "init_weights"),
]


@pytest.mark.parametrize("kind", SOUND)
def test_the_sound_package_is_accepted(kind: str, tmp_path: Path) -> None:
    check_accepted(SOUND[kind], tmp_path / "p")


@pytest.mark.parametrize("kind", SOUND)
def test_refused_of_every_kind(kind: str, tmp_path: Path) -> None:
    check_refusals_of_every_kind(SOUND[kind], tmp_path / "p")


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: Refusal, tmp_path: Path) -> None:
    check_refused(SOUND, case, tmp_path / "p")


@given(kind=st.sampled_from(sorted(SOUND)), data=st.data())
def test_any_value_in_the_configuration_is_read_or_refused(kind: str, data: st.DataObject) -> None:
    check_any_value(SOUND[kind], data)


def test_bat_keeps_to_the_memory_allowed_for_whole_matrices(tmp_path: Path) -> None:
    found = {key: torch.ones(2, 4, 4) for key in SOUND["MISS"].tensors()}
    path = write_raw(tmp_path / "p", SOUND["MISS"].config(r=4, init_weights="bat"), found)
    assert compile_package(read_package(path), SPEC).nbytes == 2 * 8 * 16 * 4
    limits = replace(DEFAULT_LIMITS, max_dense_bytes=1000)
    with pytest.raises(PackageError, match="take 1024 bytes"):
        compile_package(read_package(path, limits), SPEC)
