"""Packages written as directories: all of one or nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from adapters.errors import AdapterError, PackageError
from adapters.package.golden import GoldenLogits, read_golden
from adapters.package.manifest import Manifest
from adapters.package.reading import read_package
from adapters.package.writing import write_package
from tests.adapters.support import LORA_CONFIG, MANIFEST, lora_tensors


def test_write_and_read_back(tmp_path: Path) -> None:
    import peft

    tensors = lora_tensors()
    written = [
        GoldenLogits(torch.tensor([1, 2, 3]), torch.randn(32)),
        GoldenLogits(torch.tensor([31]), torch.randn(32)),
    ]
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules={"q_proj"}, task_type="CAUSAL_LM").to_dict()
    write_package(tmp_path / "deep" / "p", config, tensors, MANIFEST, written)
    package = read_package(tmp_path / "deep" / "p")
    assert package.manifest == MANIFEST
    assert all(torch.equal(package.tensors[name], tensor) for name, tensor in tensors.items())
    golden = read_golden(package.path)
    assert all(torch.equal(a.input_ids, b.input_ids) for a, b in zip(golden, written, strict=True))
    assert all(torch.equal(a.logits, b.logits) for a, b in zip(golden, written, strict=True))
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["p"]


def test_write_replaces_only_when_told(package: Path) -> None:
    before = read_package(package).digest
    with pytest.raises(PackageError, match="exists already"):
        write_package(package, LORA_CONFIG, lora_tensors())
    assert read_package(package).digest == before
    write_package(package, LORA_CONFIG, lora_tensors(), replace=True)
    assert read_package(package).digest != before
    assert [path.name for path in package.parent.iterdir()] == ["package"]


@pytest.mark.parametrize(
    ("config", "tensors", "manifest"),
    [
        ({"peft_type": "XLORA"}, lora_tensors(), None),
        (LORA_CONFIG, {"a": torch.tensor([float("nan")])}, None),
        (LORA_CONFIG, {}, None),
        (LORA_CONFIG, {"a": torch.ones(2, dtype=torch.int64)}, None),
        ({**LORA_CONFIG, "auto_mapping": object()}, lora_tensors(), None),
        ({"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 2}, {"prompt_embeddings": torch.ones(2, 2)}, MANIFEST),
    ],
)
def test_nothing_unsound_is_written(config: Any, tensors: Any, manifest: Manifest | None, tmp_path: Path) -> None:
    with pytest.raises(AdapterError):
        write_package(tmp_path / "p", config, tensors, manifest)
    assert list(tmp_path.iterdir()) == []


def test_write_from_non_contiguous_and_shared_tensors(tmp_path: Path) -> None:
    wide = torch.randn(16, 8)
    key = "base_model.model.model.layers.0.attn.q_proj.lora_"
    tensors = {f"{key}A.weight": wide.T[:4, :], f"{key}B.weight": wide.T[:, :4]}
    write_package(tmp_path / "p", LORA_CONFIG, tensors)
    assert all(torch.equal(t, tensors[name]) for name, t in read_package(tmp_path / "p").tensors.items())
