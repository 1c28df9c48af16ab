"""Packages as directories: reading, writing, digest, manifest and golden logits."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from adapters.errors import AdapterError, PackageError
from adapters.limits import PackageLimits
from adapters.package.golden import GoldenLogits, read_golden
from adapters.package.inspection import inspect_package
from adapters.package.manifest import BaseRef, DataRef, Manifest, encode_manifest, parse_manifest, read_manifest
from adapters.package.reading import read_package
from adapters.package.writing import write_package
from tests.adapters.support import LORA_CONFIG, lora_tensors, write_raw

MANIFEST = Manifest(
    kind="lora",
    base=BaseRef("smollm2", "f" * 64),
    created=datetime(2026, 1, 2, 3, 4, tzinfo=UTC),
    chat_template_sha256="a" * 64,
    special_tokens={"eos_token": "<|im_end|>", "additional_special_tokens": ["<a>"]},
    data=DataRef("b" * 64, 480),
    seed=7,
    versions={"torch": "2"},
    metrics={"eval_loss": 0.5},
    training={"method": "lora", "r": 4, "targets": ["q_proj"], "rate": 1e-3, "patterns": {"a": 1}},
)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    return write_raw(tmp_path / "package", LORA_CONFIG, lora_tensors())


def test_what_peft_saves_is_read(tiny_adapters: Mapping[str, Path]) -> None:
    for path in tiny_adapters.values():
        package, info = read_package(path), inspect_package(path)
        assert package.digest == info.digest
        assert package.nbytes == info.nbytes == sum(t.nbytes for t in package.tensors.values())
        assert package.manifest is None
    assert len({read_package(path).digest for path in tiny_adapters.values()}) == len(tiny_adapters)


def test_inspection_needs_no_torch(package: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from adapters.package import archive, inspection;"
        "from bases import finding, fingerprint;"
        "print(inspection.inspect_package(Path(sys.argv[1])).digest);"
        "sys.exit(any(m in sys.modules for m in ('torch', 'numpy', 'transformers', 'peft', 'huggingface_hub')))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(package)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, read_package(package).digest), done.stderr


def test_digest_depends_on_content_alone(package: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    tensors = lora_tensors()
    digest = read_package(package).digest
    other = write_raw(tmp_path / "b", {**LORA_CONFIG, "lora_dropout": 0.3}, dict(reversed(tensors.items())))
    save_file(dict(reversed(tensors.items())), other / "adapter_model.safetensors", metadata={"note": "other header"})
    (other / "hotswap.json").write_bytes(encode_manifest(MANIFEST))
    assert read_package(other).digest == digest
    changes: list[tuple[dict[str, Any], dict[str, torch.Tensor]]] = [
        ({**LORA_CONFIG, "lora_alpha": 9}, tensors),
        (LORA_CONFIG, {name: t + 1e-6 if "layers.1" in name else t for name, t in tensors.items()}),
        (LORA_CONFIG, {name: t.bfloat16() for name, t in tensors.items()}),
        (LORA_CONFIG, {name.replace("q_proj", "v_proj"): t for name, t in tensors.items()}),
        (LORA_CONFIG, {name: t.reshape(-1, 2) for name, t in tensors.items()}),
    ]
    digests = {read_package(write_raw(tmp_path / str(i), *change)).digest for i, change in enumerate(changes)}
    assert len(digests | {digest}) == len(changes) + 1


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_missing_files(package: Path, name: str) -> None:
    (package / name).unlink()
    with pytest.raises(PackageError, match=f"there is no {name}"):
        read_package(package)


def test_other_unsound_directories(package: Path, tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="not a directory"):
        read_package(tmp_path / "absent")
    with pytest.raises(PackageError, match=r"weighs .* bytes; at most 100 are read"):
        read_package(package, PackageLimits(max_bytes=100))
    (package / "adapter_model.bin").write_bytes(b"x")
    with pytest.raises(PackageError, match="pickle"):
        read_package(package)
    (package / "adapter_model.bin").unlink()
    save_file({}, package / "adapter_model.safetensors")
    with pytest.raises(PackageError, match="holds no tensors"):
        read_package(package)


def test_write_and_read_back(tmp_path: Path) -> None:
    import peft

    tensors = lora_tensors()
    probes = [GoldenLogits(torch.tensor([1, 2, 3]), torch.randn(32)), GoldenLogits(torch.tensor([31]), torch.randn(32))]
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules={"q_proj"}, task_type="CAUSAL_LM").to_dict()
    write_package(tmp_path / "deep" / "p", config, tensors, MANIFEST, probes)
    package = read_package(tmp_path / "deep" / "p")
    assert package.manifest == MANIFEST
    assert all(torch.equal(package.tensors[name], tensor) for name, tensor in tensors.items())
    golden = read_golden(package.path)
    assert all(torch.equal(a.input_ids, b.input_ids) for a, b in zip(golden, probes, strict=True))
    assert all(torch.equal(a.logits, b.logits) for a, b in zip(golden, probes, strict=True))
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


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "prefix"}, "manifest calls this a 'prefix' adapter, its config a 'lora' one"),
        ({"format_version": 2}, "format_version '2'; this server reads 1: upgrade"),
        ({"format_version": "1"}, "format_version '1'"),
        ({"surprise": 1}, "unknown field `surprise`"),
        ({"base": {"name": "x"}}, "missing required field `fingerprint`"),
        ({"chat_template_sha256": "xyz"}, "chat_template_sha256"),
        ({"created": "yesterday"}, "created"),
        ({"created": "2026-01-02T03:04:05"}, "created"),
        ({"data": {"sha256": "b" * 64, "rows": -1}}, "rows"),
        ({"metrics": {"a": "b"}}, "metrics"),
    ],
)
def test_bad_manifests(change: dict[str, Any], words: str, package: Path) -> None:
    raw = {**json.loads(encode_manifest(MANIFEST)), **change}
    (package / "hotswap.json").write_text(json.dumps(raw))
    with pytest.raises(PackageError, match=words):
        read_package(package)


def test_manifest_round_trip(tmp_path: Path) -> None:
    assert parse_manifest(json.loads(encode_manifest(MANIFEST))) == MANIFEST
    assert read_manifest(tmp_path) is None


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


def test_a_damaged_golden_file_makes_the_package_unsound(package: Path) -> None:
    (package / "golden.safetensors").write_bytes(b"damaged by a bad disk")
    with pytest.raises(PackageError, match=r"golden\.safetensors is not a safetensors file"):
        read_package(package)


def test_no_golden_file_means_no_probes(tmp_path: Path) -> None:
    assert read_golden(tmp_path) == ()
