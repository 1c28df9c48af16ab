"""The demo's other processes, started as a user would: ``hotswap serve`` in the background, others to their end."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from hotswap.errors import DemoError
from trainer import local_server
from trainer.errors import ServerStartError
from trainer.local_server import HOTSWAP, environment, last_line
from trainer.local_server import LocalServer as Server

__all__ = ["Server", "publish", "run_to_end", "start_server", "wait_until_ready"]


def start_server(model: str, quantize: str, log: Path) -> AbstractContextManager[Server]:
    """A server of ``model`` on a free port, not yet ready; stopped at the end. Its output goes to ``log``."""
    return local_server.start_server(["--model", model, "--quantize", quantize], log)


async def wait_until_ready(server: Server) -> None:
    """Raises DemoError with the server's last line when it ends, or is not ready in time."""
    try:
        await local_server.wait_until_ready(server)
    except ServerStartError as error:
        raise DemoError(str(error)) from error


async def publish(server: Server, package: Path, name: str, log: Path, *options: str) -> None:
    """``hotswap publish`` of ``package`` as ``name``. Raises DemoError."""
    arguments = ["publish", str(package), "--server", server.url, "--as", name, *options]
    await run_to_end(arguments, log, {"HOTSWAP_ADMIN_KEY": server.admin_key})


async def run_to_end(arguments: list[str], log: Path, env: Mapping[str, str] | None = None) -> None:
    """Run ``hotswap`` with ``arguments``, its output into ``log``. Raises DemoError with its last line if it fails."""
    with log.open("wb") as file:
        process = await asyncio.create_subprocess_exec(
            *HOTSWAP, *arguments, stdout=file, stderr=file, env=environment(env or {})
        )
        try:
            code = await process.wait()
        except asyncio.CancelledError:
            process.terminate()
            await process.wait()
            raise
    if code != 0:
        raise DemoError(f"hotswap {arguments[0]} failed: {last_line(log)} (its log is {log})")
