"""(IA)³ and BEFT packages that are not what they say, or ask for what is not served."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adapters.errors import PackageError
from tests.adapters.kinds.sound import (
    Refusal,
    SoundPackage,
    check_accepted,
    check_any_value,
    check_refusals_of_every_kind,
    check_refused,
)

SOUND = {
    sound.kind: sound
    for sound in (
        SoundPackage("IA3", {"feedforward_modules": []}, {"ia3_l": torch.ones(8, 1)}),
        SoundPackage("BEFT", {}, {"beft_bias": torch.ones(1, 8)}),
    )
}
REFUSED: list[Refusal] = [
    ("IA3", {}, {"ia3_l": torch.ones(1, 16)}, PackageError, "does not name this module, so its outputs are scaled"),
    ("IA3", {"feedforward_modules": ["q_proj"]}, {}, PackageError, "names this module, so its inputs are scaled"),
    ("IA3", {"feedforward_modules": "("}, {}, PackageError, "not a regular expression"),
    ("IA3", {"feedforward_modules": "x" * 5000}, {}, PackageError, "longer than 2048"),
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
