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
from adapters.package.header import WEIGHT_DTYPES
from adapters.package.inspection import inspect_package
from adapters.package.manifest import Manifest
from adapters.package.tensors import read_tensors


@dataclass(frozen=True, eq=False, kw_only=True)
class AdapterPackage(SavedAdapter):
    """A sound package, loaded. ``nbytes`` are those of its tensors; ``digest`` as in ``content_digest``."""

    path: Path
    manifest: Manifest | None
    digest: str
    nbytes: int


def read_package(path: Path, limits: PackageLimits = DEFAULT_LIMITS) -> AdapterPackage:
    """Load the package in the directory ``path``. Raises PackageError or UnsupportedKindError."""
    info = inspect_package(path, limits)
    dtypes = (*WEIGHT_DTYPES, *info.config.INDEX_DTYPES)
    tensors = read_tensors(path / WEIGHTS_FILE, limits, dtypes=dtypes, empty=info.config.EMPTY_TENSORS)
    return AdapterPackage(
        path=path,
        config=info.config,
        tensors=tensors,
        manifest=info.manifest,
        digest=info.digest,
        nbytes=info.nbytes,
        limits=limits,
    )
