"""A demo that stays ends with the address of a console, and the key to it."""

from __future__ import annotations

import asyncio
import io
import re
from pathlib import Path

import httpx
import pytest
from rich.console import Console

from hotswap.demo.staying import stay

pytestmark = pytest.mark.slow


async def test_the_console_is_there_until_it_is_ended(tiny_base: Path, tmp_path: Path) -> None:
    said = io.StringIO()
    options = ["--model", str(tiny_base), "--quantize", "none", "--kv-cache-gb", "0.02"]
    staying = asyncio.create_task(stay(options, tmp_path / "log", Console(file=said)))
    async with asyncio.timeout(60):
        while "Ctrl-C" not in said.getvalue() and not staying.done():
            await asyncio.sleep(0.1)
    found = re.search(r"console: (\S+)/console\nadmin key: (\S+)\n", said.getvalue())
    assert found is not None, said.getvalue()
    async with httpx.AsyncClient(base_url=found[1], headers={"Authorization": f"Bearer {found[2]}"}) as http:
        assert (await http.get("/console")).status_code == 200
        assert (await http.get("/v1/keys")).status_code == 200
        staying.cancel()
        await staying
        with pytest.raises(httpx.ConnectError):
            await http.get("/console")
