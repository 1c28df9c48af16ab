"""Packages of kinds that scale, rotate or replace that are not what they say, or ask for what is not served."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from adapters.compiling import compile_package
from adapters.errors import AdapterError, PackageError, UnsupportedKindError
from adapters.kinds.registry import KINDS
from adapters.kinds.rotation.cayley import cayley, finite_rotation, skew
from adapters.limits import DEFAULT_LIMITS
from adapters.package.reading import read_package
from tests.adapters.support import SMALL_SPEC, write_raw

LINEARS = [f"model.layers.{i}.attn.q_proj" for i in range(2)]  # [8, 16]
NORMS = {f"model.layers.{i}.norm.{name}": (16,) for i in range(2) for name in ("weight", "bias")}
SPEC = replace(
    SMALL_SPEC,
    parameters={**NORMS, **{f"{name}.weight": (8, 16) for name in SMALL_SPEC.linears}},
    biases={**SMALL_SPEC.biases, **{f"model.layers.{i}.norm": torch.zeros(16) for i in range(2)}},
    weight=lambda name: torch.ones(SMALL_SPEC.linears[name]),
)
OFT = {"r": 0, "oft_block_size": 4, "use_cayley_neumann": True, "peft_version": "0.21.2"}
# What a sound package of each kind says beside its targets, and the tensors of each adapted module.
SOUND: dict[str, tuple[dict[str, Any], dict[str, Tensor]]] = {
    "IA3": ({"feedforward_modules": []}, {"ia3_l": torch.ones(8, 1)}),
    "BEFT": ({}, {"beft_bias": torch.ones(1, 8)}),
    "OFT": (OFT, {"oft_R.weight": torch.ones(4, 6)}),
    "BOFT": (
        {"boft_block_size": 4, "boft_n_butterfly_factor": 2},
        {"boft_R": torch.ones(2, 4, 4, 4), "boft_s": torch.ones(8, 1)},
    ),
    "HRA": ({"r": 2}, {"hra_u": torch.randn(16, 2)}),
    "MISS": ({"r": 3}, {"miss_block": torch.ones(3, 8)}),
    "ROAD": ({"group_size": 4}, {"road_theta": torch.ones(4), "road_alpha": torch.ones(4)}),
    "SUPERTUNING": (
        {"sparsity": 0.75, "r": 2, "lora_alpha": 4.0},
        {
            "supertuning_values": torch.ones(32),
            "supertuning_indices": torch.arange(32, dtype=torch.int32),
            "supertuning_lora_A.weight": torch.ones(2, 16),
            "supertuning_lora_B.weight": torch.ones(8, 2),
        },
    ),
    "LN_TUNING": (
        {"target_modules": ["norm"]},
        {"ln_tuning_layers.weight": torch.ones(16), "ln_tuning_layers.bias": torch.ones(16)},
    ),
}


def config(kind: str, **options: Any) -> dict[str, Any]:
    return {"peft_type": kind, "task_type": "CAUSAL_LM", "target_modules": ["q_proj"], **SOUND[kind][0], **options}


def name(kind: str, layer: int, parameter: str) -> str:
    module = f"model.layers.{layer}.norm" if kind == "LN_TUNING" else LINEARS[layer]
    return f"base_model.model.{module}.{parameter}"


def tensors(kind: str) -> dict[str, Tensor]:
    return {name(kind, i, key): tensor.clone() for i in range(2) for key, tensor in SOUND[kind][1].items()}


def compile_raw(path: Path, kind: str, options: dict[str, Any], changes: dict[str, Tensor | None]) -> Any:
    """Compile the sound package with other options, and with tensors of layer 0 (by parameter) changed or left out."""
    found = tensors(kind)
    for key, tensor in changes.items():
        full = key if key.startswith("base_model") else name(kind, 0, key)
        found.pop(full, None)
        if tensor is not None:
            found[full] = tensor
    return compile_package(read_package(write_raw(path, config(kind, **options), found)), SPEC)


@pytest.mark.parametrize("kind", SOUND)
def test_the_sound_package_is_accepted(kind: str, tmp_path: Path) -> None:
    adapter = compile_raw(tmp_path / "p", kind, {}, {})
    assert len(adapter.ops) == 2
    assert adapter.kind == KINDS[kind].config.KIND


@pytest.mark.parametrize("kind", SOUND)
def test_refused_of_every_kind(kind: str, tmp_path: Path) -> None:
    first = next(iter(SOUND[kind][1]))

    def refused(words: str, options: dict[str, Any], changes: dict[str, Tensor | None]) -> None:
        with pytest.raises(AdapterError, match=words):
            compile_raw(tmp_path / "p", kind, options, changes)

    for key, tensor in SOUND[kind][1].items():
        refused(f"{key}' is missing", {}, {key: None})
        refused(rf"{key}' has shape \[{tensor.shape[0] + 1}", {}, {key: torch.ones(len(tensor) + 1, *tensor.shape[1:])})
        refused("has shape|holds integers", {}, {key: torch.ones(())})
        refused("dtype 'I64'", {}, {key: torch.ones(tensor.shape, dtype=torch.int64)})
        if tensor.is_floating_point():
            refused("NaN or infinity", {}, {key: torch.full(tensor.shape, torch.nan)})
    refused("is unknown", {}, {"surprise": torch.ones(1)})
    refused("is unknown", {}, {"lora_A.weight": torch.ones(1)})
    refused("the unknown key 'surprise'", {"surprise": 1}, {})
    refused("matches no", {}, {f"base_model.model.model.layers.7.attn.q_proj.{first}": SOUND[kind][1][first]})
    refused("is missing: target_modules|matches no", {"target_modules": ["q_proj", "v_proj", "norm"]}, {})
    only = "0.norm" if kind == "LN_TUNING" else "0.attn.q_proj"
    refused("does not name", {"target_modules": [only]}, {})
    refused("not a regular expression", {"target_modules": "("}, {})


REFUSED: list[tuple[str, dict[str, Any], dict[str, Tensor | None], type[AdapterError], str]] = [
    ("IA3", {}, {"ia3_l": torch.ones(1, 16)}, PackageError, "does not name this module, so its outputs are scaled"),
    ("IA3", {"feedforward_modules": ["q_proj"]}, {}, PackageError, "names this module, so its inputs are scaled"),
    ("IA3", {"feedforward_modules": "("}, {}, PackageError, "not a regular expression"),
    ("IA3", {"feedforward_modules": "x" * 5000}, {}, PackageError, "longer than 2048"),
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
    ("MISS", {"r": 0}, {}, PackageError, "r is 0"),
    ("MISS", {"r": 17}, {}, PackageError, "16 inputs, and r is 17"),
    ("MISS", {"init_weights": "mini", "mini_r": 3}, {}, PackageError, "8 outputs, no multiple of mini_r 3"),
    ("MISS", {"init_weights": "mini", "mini_r": 0}, {}, PackageError, "mini_r is 0"),
    ("MISS", {"init_weights": "mini", "mini_r": 4}, {}, PackageError, r"expected \[3, 4\]"),
    ("MISS", {"init_weights": "bat"}, {}, PackageError, "not made of blocks of r 3"),
    ("MISS", {"init_weights": "bat", "r": 4}, {}, PackageError, r"expected \[2, 4, 4\]"),
    ("MISS", {"init_weights": "other"}, {}, PackageError, "init_weights"),
    ("ROAD", {"group_size": 3}, {}, PackageError, "must be even"),
    ("ROAD", {"group_size": 6}, {}, PackageError, "8 outputs, no multiple of group_size 6"),
    ("ROAD", {"variant": "road_2"}, {}, PackageError, r"expected \[8\]; variant"),
    ("ROAD", {"variant": "road_3"}, {}, PackageError, "variant"),
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


@pytest.mark.parametrize("case", REFUSED)
def test_refused(
    case: tuple[str, dict[str, Any], dict[str, Tensor | None], type[AdapterError], str], tmp_path: Path
) -> None:
    kind, options, changes, kind_of_error, words = case
    with pytest.raises(kind_of_error, match=words):
        compile_raw(tmp_path / "p", kind, options, changes)


@pytest.mark.parametrize("value", [1e10, 1e35, 3e38])
@pytest.mark.parametrize("size", [3, 9])
def test_rotations_by_numbers_too_large_are_no_crash(size: int, value: float) -> None:
    turned = cayley(skew(torch.full((1, size * (size - 1) // 2), value), size))
    with pytest.raises(PackageError, match="'w' gives no finite rotation"):
        finite_rotation("w", turned)


@pytest.mark.parametrize("missing", ["r", "oft_block_size", "use_cayley_neumann"])
def test_keys_whose_default_changed_must_be_there(missing: str) -> None:
    raw = {key: value for key, value in config("OFT").items() if key != missing}
    with pytest.raises(PackageError, match=f"missing required field `{missing}`"):
        KINDS["OFT"].config.parse(raw, DEFAULT_LIMITS)


def test_bat_keeps_to_the_memory_allowed_for_whole_matrices(tmp_path: Path) -> None:
    found = {key: torch.ones(2, 4, 4) for key in tensors("MISS")}
    path = write_raw(tmp_path / "p", config("MISS", r=4, init_weights="bat"), found)
    assert compile_package(read_package(path), SPEC).nbytes == 2 * 8 * 16 * 4
    limits = replace(DEFAULT_LIMITS, max_dense_bytes=1000)
    with pytest.raises(PackageError, match="take 1024 bytes"):
        compile_package(read_package(path, limits), SPEC)


def test_equal_indices_add_up(tmp_path: Path) -> None:
    indices = torch.zeros(32, dtype=torch.int32)
    adapter = compile_raw(tmp_path / "p", "SUPERTUNING", {}, {"supertuning_indices": indices})
    sparse = adapter.ops[LINEARS[0]][0]
    assert sparse.reference(torch.ones(16), torch.zeros(8), None).tolist() == [32.0] + [0.0] * 7


_JSON: st.SearchStrategy[object] = (
    st.none() | st.booleans() | st.integers(-3, 40) | st.floats() | st.text(max_size=3) | st.just([])
)


@given(kind=st.sampled_from(sorted(SOUND)), data=st.data())
def test_any_value_in_the_configuration_is_read_or_refused(kind: str, data: st.DataObject) -> None:
    raw = config(kind)
    fields = [*KINDS[kind].config.__struct_fields__, *KINDS[kind].config.IGNORED]
    for key in data.draw(st.lists(st.sampled_from(fields), max_size=3)):
        raw[key] = data.draw(_JSON)
    with contextlib.suppress(AdapterError):
        KINDS[kind].config.parse(raw, DEFAULT_LIMITS).semantics()
