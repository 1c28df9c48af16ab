"""Golden logits are read strictly."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from adapters.errors import PackageError
from adapters.package.golden import GoldenLogits, encode_golden, read_golden
from adapters.package.reading import read_package


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"probe.0.input_ids": torch.tensor([1])}, "unknown tensor 'probe.0.input_ids'"),
        ({"probe.0.input_ids": torch.tensor([1]), "x": torch.ones(2)}, "lacks probe.0"),
        ({"probe.1.input_ids": torch.tensor([1]), "probe.1.logits": torch.ones(2)}, "lacks probe.0"),
        ({"probe.0.input_ids": torch.ones(1), "probe.0.logits": torch.ones(2)}, "must be int64"),
        ({"probe.0.input_ids": torch.tensor([1]), "probe.0.logits": torch.ones(2, 2)}, "must be int64"),
        ({"probe.0.input_ids": torch.tensor([2]), "probe.0.logits": torch.ones(2)}, "outside of its vocabulary"),
        ({"probe.0.input_ids": torch.tensor([-1]), "probe.0.logits": torch.ones(2)}, "outside of its vocabulary"),
        ({"probe.0.input_ids": torch.tensor([1]), "probe.0.logits": torch.tensor([0, float("nan")])}, "NaN"),
        ({"probe.0.input_ids": torch.tensor([1]), "probe.0.logits": torch.ones(2).half()}, "has dtype 'F16'"),
    ],
)
def test_bad_golden_files(tensors: dict[str, torch.Tensor], words: str, tmp_path: Path) -> None:
    save_file(tensors, tmp_path / "golden.safetensors")
    with pytest.raises(PackageError, match=words):
        read_golden(tmp_path)


def test_too_many_probes(tmp_path: Path) -> None:
    probes = [GoldenLogits(torch.tensor([1]), torch.ones(2))] * 33
    (tmp_path / "golden.safetensors").write_bytes(encode_golden(probes))
    with pytest.raises(PackageError, match="at most 32 probes"):
        read_golden(tmp_path)


def test_a_damaged_golden_file_makes_the_package_unsound(package: Path) -> None:
    (package / "golden.safetensors").write_bytes(b"damaged by a bad disk")
    with pytest.raises(PackageError, match=r"golden\.safetensors is not a safetensors file"):
        read_package(package)


def test_no_golden_file_means_no_golden_logits(tmp_path: Path) -> None:
    assert read_golden(tmp_path) == ()
