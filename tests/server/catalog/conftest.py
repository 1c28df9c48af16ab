from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.server.catalog.support import Backend
from tests.server.engine.ipc.clients import until


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
