"""Looks at a package without loading it: everything that can be checked before a tensor is read. Imports no torch.

What it cannot see: NaN values, and whether shapes fit a base; ``adapters.package`` and ``adapters.kinds`` do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from adapters.config import AdapterConfig, read_config
from adapters.digest import content_digest
from adapters.errors import PackageError
from adapters.files import GOLDEN_FILE, WEIGHTS_FILE, is_kept
from adapters.header import GOLDEN_DTYPES, WEIGHT_DTYPES, TensorInfo, read_header
from adapters.limits import DEFAULT_LIMITS, PackageLimits
from adapters.manifest import Manifest, read_manifest
from adapters.names import shown


@dataclass(frozen=True)
class PackageInfo:
    """A package whose files are sound. ``nbytes`` are those of its tensors; ``digest`` as in adapters.digest."""

    path: Path
    config: AdapterConfig
    manifest: Manifest | None
    tensors: Mapping[str, TensorInfo]
    digest: str

    @property
    def kind(self) -> str:
        """Our name of the kind: lora, prefix or prompt."""
        return self.config.KIND

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(info.nbytes for info in self.tensors.values())


def inspect_package(path: Path, limits: PackageLimits = DEFAULT_LIMITS) -> PackageInfo:
    """Check the package in the directory ``path`` as far as possible without loading tensors.

    Raises PackageError or UnsupportedKindError.
    """
    if not path.is_dir():
        raise PackageError("the package is not a directory")
    names = sorted(child.name for child in path.iterdir() if child.is_file())
    for name in names:
        is_kept(name)
    config = read_config(path, limits)
    if WEIGHTS_FILE not in names:
        raise PackageError(f"there is no {WEIGHTS_FILE}; a package holds what peft's save_pretrained writes")
    manifest = read_manifest(path, limits)
    if manifest is not None and manifest.kind != config.KIND:
        raise PackageError(
            f"the manifest calls this a {shown(manifest.kind)} adapter, its config a {config.KIND!r} one"
        )
    weights = path / WEIGHTS_FILE
    dtypes = (*WEIGHT_DTYPES, *config.INDEX_DTYPES)
    infos = read_header(weights, limits, dtypes=dtypes, empty=config.EMPTY_TENSORS)
    if not infos:
        raise PackageError(f"{WEIGHTS_FILE} holds no tensors")
    if GOLDEN_FILE in names:
        read_header(path / GOLDEN_FILE, limits, dtypes=GOLDEN_DTYPES)
    return PackageInfo(path, config, manifest, infos, content_digest(config, weights, infos))
