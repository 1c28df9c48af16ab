"""Packages of kinds that rotate that are not what they say, or ask for what is not served."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adapters.errors import PackageError, UnsupportedKindError
from adapters.kinds.registry import KINDS
from adapters.kinds.rotation.cayley import cayley, finite_rotation, skew
from adapters.limits import DEFAULT_LIMITS
from tests.adapters.kinds.sound import (
    Refusal,
    SoundPackage,
    check_accepted,
    check_any_value,
    check_refusals_of_every_kind,
    check_refused,
)

OFT = {"r": 0, "oft_block_size": 4, "use_cayley_neumann": True, "peft_version": "0.21.2"}
SOUND = {
    sound.kind: sound
    for sound in (
        SoundPackage("OFT", OFT, {"oft_R.weight": torch.ones(4, 6)}),
        SoundPackage(
            "BOFT",
            {"boft_block_size": 4, "boft_n_butterfly_factor": 2},
            {"boft_R": torch.ones(2, 4, 4, 4), "boft_s": torch.ones(8, 1)},
        ),
        SoundPackage("HRA", {"r": 2}, {"hra_u": torch.randn(16, 2)}),
        SoundPackage("ROAD", {"group_size": 4}, {"road_theta": torch.ones(4), "road_alpha": torch.ones(4)}),
    )
}
REFUSED: list[Refusal] = [
    ("OFT", {"r": 4}, {}, PackageError, "r is 4 and oft_block_size is 4; one of them must be 0"),
    ("OFT", {"r": -1, "oft_block_size": 0}, {}, PackageError, "one of them must be 0"),
    ("OFT", {"oft_block_size": 0}, {}, PackageError, "r is 0 and oft_block_size is 0"),
    ("OFT", {"oft_block_size": 8}, {}, PackageError, r"expected \[2, 28\]"),
    ("OFT", {"block_share": True}, {}, PackageError, r"expected \[1, 6\]"),
    ("OFT", {"eps": 0, "coft": True}, {}, PackageError, "eps must be"),
    ("OFT", {"num_cayley_neumann_terms": 10**9}, {}, PackageError, "from 1 to 100"),
    ("OFT", {"num_cayley_neumann_terms": 90}, {"oft_R.weight": torch.full((4, 6), 1e3)}, PackageError, "no finite rot"),
    ("OFT", {"peft_version": "0.17.1"}, {}, UnsupportedKindError, "peft 0.18 changed"),
    ("OFT", {"peft_version": None}, {}, UnsupportedKindError, "train it again"),
    ("OFT", {"bias": "lora_only"}, {}, PackageError, "bias"),
    ("OFT", {}, {"base_layer.bias": torch.ones(8)}, PackageError, "is unknown"),
    ("OFT", {"bias": "all"}, {"base_layer.bias": torch.ones(9)}, PackageError, r"expected \[8\]"),
    ("OFT", {}, {"oft_embedding_R.weight": torch.ones(4, 6)}, PackageError, "has both"),
    ("BOFT", {"boft_block_num": 4}, {}, PackageError, "one of them must be 0"),
    ("BOFT", {"boft_block_size": 5}, {}, PackageError, "16 inputs, no multiple"),
    ("BOFT", {"boft_block_size": 0, "boft_block_num": 32}, {}, PackageError, "16 inputs, no multiple"),
    ("BOFT", {"boft_n_butterfly_factor": 3}, {}, PackageError, r"expected \[3, 4, 4, 4\]"),
    ("BOFT", {"boft_n_butterfly_factor": 4}, {"boft_R": torch.ones(4, 4, 4, 4)}, PackageError, "make no butterfly"),
    ("BOFT", {"boft_n_butterfly_factor": 10**9}, {}, PackageError, "from 1 to 32"),
    ("HRA", {"r": 0}, {}, PackageError, "r is 0"),
    ("HRA", {"r": 3}, {}, PackageError, r"expected \[16, 3\]; the number of columns is r"),
    ("HRA", {}, {"hra_u": torch.zeros(16, 2)}, PackageError, "column of zeros"),
    ("HRA", {"apply_GS": True}, {"hra_u": torch.ones(16, 2)}, PackageError, "column 1 depends on those before it"),
    ("ROAD", {"group_size": 3}, {}, PackageError, "must be even"),
    ("ROAD", {"group_size": 6}, {}, PackageError, "8 outputs, no multiple of group_size 6"),
    ("ROAD", {"variant": "road_2"}, {}, PackageError, r"expected \[8\]; variant"),
    ("ROAD", {"variant": "road_3"}, {}, PackageError, "variant"),
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


@pytest.mark.parametrize("value", [1e10, 1e35, 3e38])
@pytest.mark.parametrize("size", [3, 9])
def test_rotations_by_numbers_too_large_are_no_crash(size: int, value: float) -> None:
    turned = cayley(skew(torch.full((1, size * (size - 1) // 2), value), size))
    with pytest.raises(PackageError, match="'w' gives no finite rotation"):
        finite_rotation("w", turned)


@pytest.mark.parametrize("missing", ["r", "oft_block_size", "use_cayley_neumann"])
def test_keys_whose_default_changed_must_be_there(missing: str) -> None:
    raw = {key: value for key, value in SOUND["OFT"].config().items() if key != missing}
    with pytest.raises(PackageError, match=f"missing required field `{missing}`"):
        KINDS["OFT"].config.parse(raw, DEFAULT_LIMITS)
