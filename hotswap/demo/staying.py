"""The end of a demo that stays: a server with all that was published, and its console, until somebody ends it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from hotswap.errors import DemoError
from trainer.serving.local_server import last_line, start_server, wait_until_ready


async def stay(options: Sequence[str], log: Path, console: Console) -> None:
    """Serve, tell where, and wait for Ctrl-C. Raises DemoError where the server ends by itself."""
    with start_server(options, log) as server:
        await wait_until_ready(server)
        console.print(f"\nconsole: {server.url}/console\nadmin key: {server.admin_key}", markup=False, soft_wrap=True)
        console.print("Ctrl-C ends it", markup=False)
        try:
            while server.process.poll() is None:
                await asyncio.sleep(0.2)
        except asyncio.CancelledError:  # Ctrl-C, which is what we wait for
            return
        raise DemoError(f"the server ended: {last_line(log)} (its log is {log})")
