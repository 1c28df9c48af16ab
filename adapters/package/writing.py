"""Writes packages as directories: all of one or nothing, also after a crash."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from adapters.errors import PackageError
from adapters.kinds.config import CONFIG_FILE
from adapters.kinds.registry import parse_config
from adapters.package.files import GOLDEN_FILE, MANIFEST_FILE, WEIGHTS_FILE, move_directory, sync
from adapters.package.golden import GoldenLogits, encode_golden
from adapters.package.inspection import inspect_package
from adapters.package.manifest import Manifest, encode_manifest
from adapters.package.tensors import check_finite


def write_package(
    path: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    manifest: Manifest | None = None,
    golden: Sequence[GoldenLogits] = (),
    *,
    replace: bool = False,
) -> None:
    """Write a package to ``path`` so that a reader sees all of it or nothing, also after a crash.

    ``config`` is peft's configuration as a dict (``to_dict()``, or the saved JSON). Raises PackageError when the parts
    make no sound package, or when ``path`` exists and ``replace`` is not set.
    """
    if path.exists() and not replace:
        raise PackageError(f"{path} exists already")
    text = encode_config(config)
    check_finite(tensors)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        files = _encode(text, tensors, manifest, golden)
        for name, data in files.items():
            _write_durably(scratch / name, data)
        inspect_package(scratch)
        scratch.chmod(0o755)
        sync(scratch)
        move_directory(scratch, path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def encode_config(config: Mapping[str, Any]) -> str:
    """The text of ``adapter_config.json``. Raises PackageError for a configuration that would not be read."""
    text = json.dumps(dict(config), indent=2, sort_keys=True, allow_nan=False, default=_plain)
    parse_config(json.loads(text))
    return text


def _encode(
    config: str, tensors: Mapping[str, Tensor], manifest: Manifest | None, golden: Sequence[GoldenLogits]
) -> dict[str, bytes]:
    own = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    files = {
        CONFIG_FILE: config.encode() + b"\n",
        WEIGHTS_FILE: bytes(save(own, metadata={"format": "pt"})),
    }
    if manifest is not None:
        files[MANIFEST_FILE] = encode_manifest(manifest)
    if golden:
        files[GOLDEN_FILE] = encode_golden(golden)
    return files


def _plain(value: object) -> list[Any]:
    if isinstance(value, (set, frozenset)):  # peft's to_dict gives target_modules as a set
        return sorted(value)
    raise PackageError(f"{CONFIG_FILE} cannot hold a {type(value).__name__}")


def _write_durably(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
