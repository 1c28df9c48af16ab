"""One server for all tests of keys."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.server.api.keys.calls import CLIENTS, ROOT
from tests.server.live import Live, live_server


@pytest.fixture(scope="package")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keyed")


@pytest.fixture(scope="package")
def keyed(base: Path, packages: dict[str, Path], data_dir: Path) -> Iterator[Live]:
    """A server with an admin key of a flag, and the adapters of two teams."""
    adapters = (("team-a-x", str(packages["lora"])), ("team-b-x", str(packages["prompt"])))
    with live_server(base, data_dir, adapters=adapters, admin_key=ROOT) as live:
        yield live


@pytest.fixture(scope="package", autouse=True)
def one_client() -> Iterator[None]:
    with httpx.Client(timeout=60) as client:
        CLIENTS.append(client)
        yield
        CLIENTS.clear()
