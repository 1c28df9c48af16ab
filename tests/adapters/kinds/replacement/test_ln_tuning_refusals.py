"""LN-tuning packages that are not what they say, or ask for what is not served."""

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
        SoundPackage(
            "LN_TUNING",
            {},
            {"ln_tuning_layers.weight": torch.ones(16), "ln_tuning_layers.bias": torch.ones(16)},
            "norm",
            ("model.layers.0.norm", "model.layers.1.norm"),
        ),
    )
}
REFUSED: list[Refusal] = [
    ("LN_TUNING", {"target_modules": ["attn"]}, {}, PackageError, "does not name|matches no"),
    (
        "LN_TUNING",
        {},
        {"base_model.model.model.norm.ln_tuning_layers.weight": torch.ones(16)},
        PackageError,
        "no param",
    ),
    ("LN_TUNING", {}, {"ln_tuning_layers.q_proj.weight": torch.ones(8, 16)}, PackageError, "no parameter"),
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
