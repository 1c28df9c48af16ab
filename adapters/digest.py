"""The content digest of an adapter: equal for packages that compute the same, whatever their files look like.

Imports no torch: tensor bytes are hashed straight from the file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from adapters.config import AdapterConfig
from adapters.errors import PackageError
from adapters.header import TensorInfo

_CHUNK = 1 << 20


def content_digest(config: AdapterConfig, weights: Path, infos: Mapping[str, TensorInfo]) -> str:
    """Hex SHA-256 over what decides the adapter's outputs.

    That is the semantic part of ``config`` and, for every tensor in the order of names, its name, dtype, shape and
    bytes in the file ``weights``. Order of tensors in the file, metadata and keys that concern training do not count.
    Raises PackageError when the file cannot be read.
    """
    digest = hashlib.sha256()
    digest.update(_record("hotswap-adapter-1", config.semantics()))
    try:
        with weights.open("rb") as file:
            for name in sorted(infos):
                info = infos[name]
                digest.update(_record(name, [info.dtype, list(info.shape)]))
                file.seek(info.begin)
                left = info.nbytes
                while left:
                    chunk = file.read(min(left, _CHUNK))
                    if not chunk:
                        raise PackageError(f"{weights.name} became shorter while it was read")
                    digest.update(chunk)
                    left -= len(chunk)
    except OSError as error:
        raise PackageError(f"{weights.name} cannot be read: {error.strerror or 'unknown error'}") from error
    return digest.hexdigest()


def _record(name: str, value: object) -> bytes:
    """One self-delimiting line, so that no two contents give the same bytes."""
    return json.dumps([name, value], separators=(",", ":"), sort_keys=True).encode() + b"\n"
