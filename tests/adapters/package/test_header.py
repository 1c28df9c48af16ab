"""The safetensors header: sound files, every unsound one, and arbitrary bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from adapters.errors import PackageError
from adapters.limits import PackageLimits
from adapters.package.header import WEIGHT_DTYPES, read_header
from adapters.package.tensors import read_tensors
from tests.adapters.support import raw_safetensors, refusal

ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
TWO = {"a": ONE, "b": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}}
LIMITS = PackageLimits(max_tensors=3, max_bytes=4096, max_header_bytes=2048)
LONG = PackageLimits(max_tensors=3)

BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not a safetensors file"),
    "short": (b"12345678", "not a safetensors file"),
    "text": (b"this is some text, nothing else", "not a safetensors file, or it is truncated"),
    "pickle": (b"\x80\x04\x95\x10\0\0\0\0" + b"x" * 30, "not a safetensors file"),
    "header too long": (raw_safetensors(b"{}" + b" " * 3000), "has a header of 3002 bytes"),
    "not json": (raw_safetensors(b"{nonsense"), "header of w is not valid JSON"),
    "not an object": (raw_safetensors([1]), "must hold a JSON object"),
    "duplicate names": (
        raw_safetensors(b'{"a":%b,"a":%b}' % ((json.dumps(ONE).encode(),) * 2), bytes(8)),
        "a tensor twice",
    ),
    "too many keys": (raw_safetensors(b'{"":1' + b',"":1' * 70_000), "more entries than 3 tensors ask for"),
    "deep": (raw_safetensors(b"[" * 2000), "must hold a JSON object"),
    "deep entry": (raw_safetensors(b'{"a":' + b"[" * 2000), "nested too deeply|not valid JSON"),
    "entry no object": (raw_safetensors({"a": 1}), "'a' is malformed"),
    "missing offsets": (raw_safetensors({"a": {"dtype": "F32", "shape": [2]}}, bytes(8)), "malformed"),
    "extra key": (raw_safetensors({"a": {**ONE, "x": 1}}, bytes(8)), "malformed"),
    "float shape": (raw_safetensors({"a": {**ONE, "shape": [2.0]}}, bytes(8)), "malformed"),
    "negative": (raw_safetensors({"a": {**ONE, "shape": [-2]}}, bytes(8)), "empty"),
    "zero": (raw_safetensors({"a": {**ONE, "shape": [0], "data_offsets": [0, 0]}}), "is empty; was it saved before"),
    "dtype": (raw_safetensors({"a": {**ONE, "dtype": "I32"}}, bytes(8)), "has dtype 'I32'; read are BF16, F16, F32"),
    "strange dtype": (raw_safetensors({"a": {**ONE, "dtype": "Q4"}}, bytes(8)), "has dtype 'Q4'"),
    "many dimensions": (raw_safetensors({"a": {**ONE, "shape": [1] * 300 + [2]}}, bytes(8)), "has 301 dimensions"),
    "shape and bytes differ": (raw_safetensors({"a": {**ONE, "shape": [3]}}, bytes(8)), "do not agree"),
    "huge shape": (raw_safetensors({"a": {**ONE, "shape": [2**40, 2**40]}}, bytes(8)), "do not agree"),
    "reversed": (raw_safetensors({"a": {**ONE, "data_offsets": [8, 0]}}, bytes(8)), "do not agree"),
    "hole": (raw_safetensors({"a": {**ONE, "data_offsets": [4, 12]}}, bytes(12)), "leaves a hole"),
    "overlap": (raw_safetensors({"a": ONE, "b": ONE}, bytes(8)), "overlaps"),
    "truncated": (raw_safetensors(TWO, bytes(15)), "truncated or padded"),
    "padded": (raw_safetensors(TWO, bytes(17)), "truncated or padded"),
    "too many": (raw_safetensors({str(i): {} for i in range(4)}), "holds 4 tensors; at most 3"),
    "too large": (raw_safetensors(TWO, bytes(5000)), "at most 4096 are read"),
    "name not printable": (raw_safetensors({"a\n": ONE}, bytes(8)), "not printable ASCII"),
    "name too long": (raw_safetensors({"a" * 600: ONE}, bytes(8)), "too long"),
    "empty name": (raw_safetensors({"": ONE}, bytes(8)), "is empty"),
}


@pytest.mark.parametrize("name", list(BAD))
def test_unsound_files(name: str, tmp_path: Path) -> None:
    data, words = BAD[name]
    (tmp_path / "w").write_bytes(data)
    with pytest.raises(PackageError, match=words):
        read_tensors(tmp_path / "w", LONG if name == "too many keys" else LIMITS)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="cannot be read: No such file"):
        read_header(tmp_path / "w", LIMITS)


def test_what_safetensors_writes_is_read(tmp_path: Path) -> None:
    tensors = {"b": torch.randn(3, 2), "a": torch.ones(4, dtype=torch.bfloat16), "c": torch.tensor(2.0)}
    save_file(tensors, tmp_path / "w", metadata={"format": "pt"})
    infos = read_header(tmp_path / "w", LIMITS, dtypes=WEIGHT_DTYPES)
    assert [(i.name, i.dtype, i.shape, i.nbytes) for i in infos.values()] == [
        ("a", "BF16", (4,), 8),
        ("b", "F32", (3, 2), 24),
        ("c", "F32", (), 4),
    ]
    loaded = read_tensors(tmp_path / "w")
    assert list(loaded) == ["a", "b", "c"]
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_values_that_are_not_finite(value: float, dtype: torch.dtype, tmp_path: Path) -> None:
    bad = torch.ones(5, 5, dtype=dtype)
    bad[3, 4] = value
    save_file({"good": torch.ones(1), "bad": bad}, tmp_path / "w")
    with pytest.raises(PackageError, match="tensor 'bad' holds NaN or infinity"):
        read_tensors(tmp_path / "w")


scalars = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5)
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "F64", "x"]) | scalars,
        "shape": st.lists(st.integers(0, 9) | scalars, max_size=6) | scalars,
        "data_offsets": st.lists(st.integers(0, 64) | scalars, max_size=3) | scalars,
    }
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300, deadline=None)
@given(header=st.dictionaries(st.text(max_size=5), entries | scalars, max_size=4), size=st.integers(0, 64))
def test_any_header_is_read_or_refused(header: dict[str, Any], size: int, tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(raw_safetensors(json.dumps(header).encode(), bytes(size)))
    assert refusal(lambda: read_tensors(tmp_path / "w", LIMITS)).isprintable()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300, deadline=None)
@given(data=st.data())
def test_any_damage_is_read_or_refused(data: st.DataObject, tmp_path: Path) -> None:
    whole = bytearray(raw_safetensors(TWO, bytes(16)))
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "w").write_bytes(whole)
    assert refusal(lambda: read_tensors(tmp_path / "w", LIMITS)).isprintable()
