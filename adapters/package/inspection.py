"""Looks at a package without loading it: everything that can be checked before a tensor is read. Imports no torch.

The content digest is equal for packages that compute the same, whatever their files look like: tensor bytes are
hashed straight from the file. What is not seen here: NaN values, and whether shapes fit a base.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from adapters.checkpoints import checkpoint
from adapters.errors import PackageError
from adapters.kinds.config import CONFIG_FILE, AdapterConfig
from adapters.kinds.registry import parse_config
from adapters.limits import DEFAULT_LIMITS, PackageLimits
from adapters.package.files import GOLDEN_FILE, WEIGHTS_FILE, is_kept
from adapters.package.header import GOLDEN_DTYPES, WEIGHT_DTYPES, TensorInfo, read_header
from adapters.package.manifest import Manifest, read_manifest
from adapters.package.strict_json import read_object
from adapters.quoting import quote

_CHUNK = 1 << 20


Data = bytes | memoryview


def content_digest(
    config: AdapterConfig, infos: Mapping[str, TensorInfo], data: Callable[[TensorInfo], Iterable[Data]]
) -> str:
    """Hex SHA-256 over what decides the adapter's outputs.

    That is the semantic part of ``config`` and, for every tensor in the order of names, its name, dtype, shape and
    bytes, which ``data`` gives. Order of tensors in the file, metadata and keys that concern training do not count.
    """
    digest = hashlib.sha256()
    digest.update(_digest_line("hotswap-adapter-1", config.semantics()))
    for name in sorted(infos):
        checkpoint()
        info = infos[name]
        digest.update(_digest_line(name, [info.dtype, list(info.shape)]))
        for chunk in data(info):
            digest.update(chunk)
    return digest.hexdigest()


def _digest_of_file(config: AdapterConfig, weights: Path, infos: Mapping[str, TensorInfo]) -> str:
    """``content_digest`` of the tensors in the file ``weights``. Raises PackageError when it cannot be read."""
    try:
        with weights.open("rb") as file:
            return content_digest(config, infos, lambda info: _chunks(file, info, weights.name))
    except OSError as error:
        raise PackageError.unreadable(weights.name, error) from error


def _chunks(file: BinaryIO, info: TensorInfo, name: str) -> Iterator[bytes]:
    file.seek(info.begin)
    left = info.nbytes
    while left:
        chunk = file.read(min(left, _CHUNK))
        if not chunk:
            raise PackageError(f"{name} became shorter while it was read")
        yield chunk
        left -= len(chunk)


def _digest_line(name: str, value: object) -> bytes:
    """One self-delimiting line, so that no two contents give the same bytes."""
    return json.dumps([name, value], separators=(",", ":"), sort_keys=True).encode() + b"\n"


def read_config(directory: Path, limits: PackageLimits = DEFAULT_LIMITS) -> AdapterConfig:
    """The configuration of the package in ``directory``. Raises PackageError and UnsupportedKindError."""
    path = directory / CONFIG_FILE
    if not path.is_file():
        raise PackageError(f"there is no {CONFIG_FILE}; a package holds what peft's save_pretrained writes")
    return parse_config(read_object(path, limits.max_config_bytes), limits)


@dataclass(frozen=True)
class PackageInfo:
    """A package whose files are sound. ``nbytes`` are those of its tensors; ``digest`` as in ``content_digest``."""

    path: Path
    config: AdapterConfig
    manifest: Manifest | None
    tensors: Mapping[str, TensorInfo]
    digest: str

    @property
    def kind(self) -> str:
        """Our short name of the kind (``lora``, ``prefix``, ``c3a``)."""
        return self.config.KIND

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(info.nbytes for info in self.tensors.values())


def inspect_package(path: Path, limits: PackageLimits = DEFAULT_LIMITS) -> PackageInfo:
    """Check the package in the directory ``path`` as far as possible without loading tensors.

    Raises PackageError or UnsupportedKindError.
    """
    config, manifest, infos = inspect_files(path, limits)
    return PackageInfo(path, config, manifest, infos, _digest_of_file(config, path / WEIGHTS_FILE, infos))


def inspect_files(
    path: Path, limits: PackageLimits = DEFAULT_LIMITS
) -> tuple[AdapterConfig, Manifest | None, dict[str, TensorInfo]]:
    """What ``inspect_package`` finds, without the digest, for whoever reads the tensors anyway. Raises as it does."""
    if not path.is_dir():
        raise PackageError("the package is not a directory")
    names = sorted(child.name for child in path.iterdir() if child.is_file())
    for name in names:
        is_kept(name, beside=names)
    config = read_config(path, limits)
    if WEIGHTS_FILE not in names:
        raise PackageError(f"there is no {WEIGHTS_FILE}; a package holds what peft's save_pretrained writes")
    manifest = read_manifest(path, limits)
    if manifest is not None and manifest.kind != config.KIND:
        raise PackageError(
            f"the manifest calls this a {quote(manifest.kind)} adapter, its config a {config.KIND!r} one"
        )
    weights = path / WEIGHTS_FILE
    dtypes = (*WEIGHT_DTYPES, *config.INDEX_DTYPES)
    infos = read_header(weights, limits, dtypes=dtypes, empty=config.EMPTY_TENSORS)
    if not infos:
        raise PackageError(f"{WEIGHTS_FILE} holds no tensors")
    if GOLDEN_FILE in names:
        read_header(path / GOLDEN_FILE, limits, dtypes=GOLDEN_DTYPES)
    return config, manifest, infos
