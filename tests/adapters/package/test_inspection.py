"""What is said of a package without loading it: its files, and its digest."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from adapters.errors import PackageError
from adapters.limits import PackageLimits
from adapters.package.manifest import encode_manifest
from adapters.package.reading import read_package
from tests.adapters.package.junk import JUNK
from tests.adapters.support import LORA_CONFIG, MANIFEST, lora_tensors, write_raw


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
    (package / "value_head.bin").write_bytes(b"x")
    with pytest.raises(PackageError, match="pickle"):
        read_package(package)
    (package / "value_head.bin").unlink()
    save_file({}, package / "adapter_model.safetensors")
    with pytest.raises(PackageError, match="holds no tensors"):
        read_package(package)


def test_what_systems_and_training_leave_beside_a_package_is_no_part_of_it(package: Path) -> None:
    digest = read_package(package).digest
    for name in JUNK:
        (package / name).write_bytes(b"\0\5\x16\7")
    assert read_package(package).digest == digest
