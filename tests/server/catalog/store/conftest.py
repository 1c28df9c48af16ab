"""The addresses of object stores of every kind."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest

from server.catalog.store import ObjectStore


@pytest.fixture(params=["memory", "file", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of an empty object store."""
    match request.param:
        case "memory":
            return f"memory://{secrets.token_hex(4)}/prefix"
        case "file":
            return f"file://{tmp_path}/artifacts"
    address: str = request.getfixturevalue("s3")
    return address


@pytest.fixture
def objects(url: str) -> ObjectStore:
    """An empty object store, of every kind."""
    return ObjectStore(url)
