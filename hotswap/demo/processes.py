"""The demo's other processes, started as a user would: ``hotswap serve`` in the background, others to their end."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from hotswap.errors import DemoError

HOTSWAP = (sys.executable, "-m", "hotswap")
START_SECONDS, STOP_SECONDS = 180, 60


@dataclass
class Server:
    """A running ``hotswap serve``; stopped at the end of a ``with`` block if it was not before."""

    url: str
    key: str
    admin_key: str
    process: subprocess.Popen[bytes]
    log: Path
    exit_code: int | None = field(default=None)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        if self.exit_code is None:
            self.stop()

    def stop(self) -> int:
        """Ask it to drain and wait for its end; gives the exit code."""
        self.process.terminate()
        try:
            self.exit_code = self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.exit_code = self.process.wait()
        return self.exit_code


def start_server(model: str, quantize: str, log: Path) -> Server:
    """A server on a free port of this machine with keys of its own, not yet ready. Its output goes to ``log``."""
    port = _free_port()
    key, admin_key = secrets.token_urlsafe(16), secrets.token_urlsafe(16)
    command = [*HOTSWAP, "serve", "--model", model, "--quantize", quantize, "--host", "127.0.0.1", "--port", str(port)]
    # keys go by the environment: other users can read a command line
    env = _environment({"HOTSWAP_API_KEY": key, "HOTSWAP_ADMIN_KEY": admin_key})
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=env)
    return Server(f"http://127.0.0.1:{port}", key, admin_key, process, log)


async def wait_until_ready(server: Server) -> None:
    """Raises DemoError with the server's last line when it ends, or is not ready in time."""
    deadline = time.monotonic() + START_SECONDS
    async with httpx.AsyncClient(timeout=5) as client:
        while server.process.poll() is None:
            try:
                if (await client.get(f"{server.url}/ready")).status_code == 200:
                    return
            except httpx.TransportError:
                pass  # it does not listen yet
            if time.monotonic() > deadline:
                raise DemoError(f"the server was not ready after {START_SECONDS} s; its log is {server.log}")
            await asyncio.sleep(0.2)
    raise DemoError(f"the server ended at its start: {last_line(server.log)} (its log is {server.log})")


async def publish(server: Server, package: Path, name: str, log: Path, *options: str) -> None:
    """``hotswap publish`` of ``package`` as ``name``. Raises DemoError."""
    arguments = ["publish", str(package), "--server", server.url, "--as", name, *options]
    await run_to_end(arguments, log, {"HOTSWAP_ADMIN_KEY": server.admin_key})


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def last_line(log: Path) -> str:
    """The last line of a log that says anything."""
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else "it said nothing"


def _environment(more: Mapping[str, str]) -> dict[str, str]:
    """This process's environment, ``more``, and OpenMP threads that sleep while they wait.

    The demo's processes share the cores; threads that spin for each other would take them from everyone else.
    """
    return {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, **more}


async def run_to_end(arguments: list[str], log: Path, env: Mapping[str, str] | None = None) -> None:
    """Run ``hotswap`` with ``arguments``, its output into ``log``. Raises DemoError with its last line if it fails."""
    with log.open("wb") as file:
        process = await asyncio.create_subprocess_exec(
            *HOTSWAP, *arguments, stdout=file, stderr=file, env=_environment(env or {})
        )
        try:
            code = await process.wait()
        except asyncio.CancelledError:
            process.terminate()
            await process.wait()
            raise
    if code != 0:
        raise DemoError(f"hotswap {arguments[0]} failed: {last_line(log)} (its log is {log})")
