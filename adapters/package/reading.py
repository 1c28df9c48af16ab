"""Reads adapter packages from directories.

A package is what peft's ``save_pretrained`` writes (config and safetensors), with our manifest and golden logits
when our trainer made it. Whether it fits a base is decided by ``adapters.compiling``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from adapters.kinds.saved_adapter import SavedAdapter
from adapters.limits import DEFAULT_LIMITS, PackageLimits
from adapters.package.files import WEIGHTS_FILE
from adapters.package.inspection import content_digest, inspect_files
from adapters.package.manifest import Manifest
from adapters.package.tensors import load_tensors, tensor_bytes


@dataclass(frozen=True, eq=False, kw_only=True)
class AdapterPackage(SavedAdapter):
    """A sound package, loaded. ``nbytes`` are those of its tensors; ``digest`` as in ``content_digest``."""

    path: Path
    manifest: Manifest | None
    digest: str
    nbytes: int


def read_package(path: Path, limits: PackageLimits = DEFAULT_LIMITS) -> AdapterPackage:
    """Load the package in the directory ``path``. Raises PackageError or UnsupportedKindError.

    The digest is of what was loaded: the files are read once, and may change afterwards.
    """
    config, manifest, infos = inspect_files(path, limits)
    tensors = load_tensors(path / WEIGHTS_FILE, infos)
    return AdapterPackage(
        path=path,
        config=config,
        tensors=tensors,
        manifest=manifest,
        digest=content_digest(config, infos, lambda info: [tensor_bytes(tensors[info.name])]),
        nbytes=sum(info.nbytes for info in infos.values()),
        limits=limits,
    )
