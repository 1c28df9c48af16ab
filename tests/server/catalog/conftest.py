from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from server.catalog.database.database import sqlite_url
from tests.server.catalog.databases import PostgreSQL, postgresql
from tests.server.catalog.support import Backend
from tests.server.engine.ipc.clients import until
from tests.server.s3 import s3, s3_server

__all__ = ["s3", "s3_server"]


@pytest.fixture
async def backend(tiny_base: Path, tmp_path: Path) -> AsyncIterator[Backend]:
    made = Backend(tiny_base, tmp_path / "store")
    await made.client.start()
    yield made
    async with asyncio.timeout(30):
        await made.lifecycle.settle()
    made.check_integrity()
    await until(lambda: made.client.stats.adapters_resident == len(made.client.resident))
    await made.client.close()


@pytest.fixture(scope="session")
def any_cluster() -> Iterator[PostgreSQL | str]:
    with postgresql() as found:
        yield found


@pytest.fixture
def cluster(any_cluster: PostgreSQL | str) -> PostgreSQL:
    if isinstance(any_cluster, str):
        pytest.skip(any_cluster)
    return any_cluster


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return sqlite_url(tmp_path)
    found = request.getfixturevalue("cluster")
    assert isinstance(found, PostgreSQL)
    return found.new_url()
