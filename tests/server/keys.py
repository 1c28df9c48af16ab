"""Keys under which an engine loads a package: their digest has to be that of its content."""

from __future__ import annotations

from pathlib import Path

from adapters.package.inspection import inspect_package
from server.adapter_key import AdapterKey


def key_of(name: str, package: Path, version: int = 1) -> AdapterKey:
    """The key of ``package`` as a version of ``name``."""
    return AdapterKey(name, version, inspect_package(package).digest)
