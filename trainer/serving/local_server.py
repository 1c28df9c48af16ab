"""``hotswap serve`` in the background on this machine, started as a user would start it."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from trainer.errors import ServerStartError
from trainer.serving.client import InferenceClient

HOTSWAP = (sys.executable, "-m", "hotswap")
START_SECONDS, STOP_SECONDS = 180, 60


@dataclass
class LocalServer:
    """A running ``hotswap serve``."""

    url: str
    key: str
    admin_key: str
    process: subprocess.Popen[bytes]
    log: Path
    exit_code: int | None = field(default=None)

    def stop(self) -> int:
        """Ask it to drain and wait for its end; gives the exit code."""
        self.process.terminate()
        try:
            self.exit_code = self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._kill()
        except KeyboardInterrupt:  # told to hurry: it must not outlive us
            self._kill()
            raise
        assert self.exit_code is not None
        return self.exit_code

    def _kill(self) -> None:
        self.process.kill()
        self.exit_code = self.process.wait()


@contextmanager
def start_server(options: Sequence[str], log: Path) -> Iterator[LocalServer]:
    """A server with ``options`` on a free port with keys of its own, not yet ready; stopped at the end of the block.

    Its output goes to ``log``. However early an interruption comes, no server outlives it. Unless ``options`` say
    otherwise it keeps nothing among the user's adapters, nor elsewhere: what it is told is gone with it.
    """
    server: LocalServer | None = None
    with tempfile.TemporaryDirectory(prefix="hotswap-", ignore_cleanup_errors=True) as data_dir:
        try:
            with _interruptions_held():
                server = _start(options, log, data_dir)
            yield server
        finally:
            if server and server.exit_code is None:
                server.stop()


def _start(options: Sequence[str], log: Path, data_dir: str) -> LocalServer:
    port = free_port()
    key, admin_key = secrets.token_hex(16), secrets.token_hex(16)  # no dash first, which a command takes for an option
    # keys go by the environment: other users can read a command line
    env = environment({"HOTSWAP_API_KEY": key, "HOTSWAP_ADMIN_KEY": admin_key, "HOTSWAP_DATA_DIR": data_dir})
    env |= {"HOTSWAP_CATALOG": "", "HOTSWAP_ARTIFACTS": ""}  # not those of the user's own server
    command = [*HOTSWAP, "serve", *options, "--host", "127.0.0.1", "--port", str(port)]
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=env)
    return LocalServer(f"http://127.0.0.1:{port}", key, admin_key, process, log)


@contextmanager
def _interruptions_held() -> Iterator[None]:
    """Ctrl-C and SIGTERM within come into effect at the end of the block."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    before = {one: signal.signal(one, lambda number, _: held.append(number)) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
        for number in held:
            signal.raise_signal(number)


async def wait_until_ready(server: LocalServer, seconds: float = START_SECONDS) -> None:
    """Raises ServerStartError with the server's last line when it ends, or is not ready after ``seconds``."""
    deadline = time.monotonic() + seconds
    async with InferenceClient(server.url, server.key, timeout=5) as client:
        while server.process.poll() is None:
            if await client.is_ready():
                return
            if time.monotonic() > deadline:
                raise ServerStartError(f"the server was not ready after {seconds:g} s; its log is {server.log}")
            await asyncio.sleep(0.2)
    raise ServerStartError(f"the server ended at its start: {last_line(server.log)} (its log is {server.log})")


def last_line(log: Path) -> str:
    """The last line of a log that says anything."""
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else "it said nothing"


def environment(more: Mapping[str, str]) -> dict[str, str]:
    """This process's environment, ``more``, and OpenMP threads that sleep while they wait.

    Several processes share the cores; threads that spin for each other would take them from everyone else.
    """
    return {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, **more}


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port
