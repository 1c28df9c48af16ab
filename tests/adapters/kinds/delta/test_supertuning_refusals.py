"""Super-Tuning packages that are not what they say, or ask for what is not served."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adapters.errors import PackageError, UnsupportedKindError
from tests.adapters.kinds.sound import (
    LINEARS,
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
            "SUPERTUNING",
            {"sparsity": 0.75, "r": 2, "lora_alpha": 4.0},
            {
                "supertuning_values": torch.ones(32),
                "supertuning_indices": torch.arange(32, dtype=torch.int32),
                "supertuning_lora_A.weight": torch.ones(2, 16),
                "supertuning_lora_B.weight": torch.ones(8, 2),
            },
        ),
    )
}
REFUSED: list[Refusal] = [
    ("SUPERTUNING", {"sparsity": 1.0}, {}, PackageError, "sparsity is 1.0"),
    ("SUPERTUNING", {"sparsity": 0.5}, {}, PackageError, r"expected \[64\]"),
    ("SUPERTUNING", {"r": None}, {}, PackageError, "lora_alpha must be finite, and needs r"),
    ("SUPERTUNING", {"r": None, "lora_alpha": None}, {}, PackageError, "lora_[AB].weight' is unknown"),
    ("SUPERTUNING", {"r": 10**9}, {}, PackageError, "from 1 to 1024"),
    ("SUPERTUNING", {"lora_alpha": 1e39}, {}, PackageError, "not finite"),
    ("SUPERTUNING", {"save_precomputed_indices": False}, {}, UnsupportedKindError, "without its indices"),
    (
        "SUPERTUNING",
        {},
        {"supertuning_indices": torch.full((32,), 128, dtype=torch.int32)},
        PackageError,
        "points outside",
    ),
    ("SUPERTUNING", {}, {"supertuning_indices": torch.ones(32)}, PackageError, "indices are expected"),
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


def test_equal_indices_add_up(tmp_path: Path) -> None:
    indices = torch.zeros(32, dtype=torch.int32)
    adapter = SOUND["SUPERTUNING"].compile(tmp_path / "p", {}, {"supertuning_indices": indices})
    sparse = adapter.ops[LINEARS[0]][0]
    assert sparse.reference(torch.ones(16), torch.zeros(8), None).tolist() == [32.0] + [0.0] * 7
