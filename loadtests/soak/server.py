"""The server under test: a subprocess that is asked for its address, and looked at from outside."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import Sequence
from pathlib import Path

import psutil

ENGINE = "server.engine.ipc.process"  # what the command line of the engine's process contains
STOP_SECONDS = 60.0
COMMAND = (sys.executable, "-m", "hotswap", "serve", "--port", "0")


class Server:
    """A running ``hotswap serve``. ``url`` has no slash at its end."""

    def __init__(self, process: Process, url: str, lines: asyncio.Task[None]) -> None:
        self.url = url
        self._process = process
        self._lines = lines

    @classmethod
    async def start(cls, flags: Sequence[str], log: Path) -> Server:
        """Start it and wait until it serves; its log goes to a file. Raises RuntimeError when it ends instead."""
        with log.open("wb") as errors:
            process = await asyncio.create_subprocess_exec(
                *COMMAND, *flags, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=errors
            )
        assert process.stdout is not None
        async for line in process.stdout:
            word, _, rest = line.decode().strip().partition(" ")
            if word == "listening":
                return cls(process, rest.split()[0], asyncio.create_task(_read_on(process.stdout)))
        raise RuntimeError(f"the server ended with status {await process.wait()}; see {log}")

    @property
    def engine(self) -> psutil.Process | None:
        """The engine's process, when there is one."""
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(self._process.pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if any(ENGINE in part for part in child.cmdline()):
                        return child
        return None

    def hit(self, number: signal.Signals) -> bool:
        """Send the engine a signal; False when it has no process now."""
        engine = self.engine
        with contextlib.suppress(psutil.Error):
            if engine is not None:
                engine.send_signal(number)
                return True
        return False

    @property
    def descriptors(self) -> int:
        """Open files and sockets of the process that speaks HTTP."""
        return int(psutil.Process(self._process.pid).num_fds())

    @property
    def megabytes(self) -> float:
        """Resident memory of the process that speaks HTTP."""
        return float(psutil.Process(self._process.pid).memory_info().rss) / 2**20

    @property
    def engine_megabytes(self) -> float:
        """Resident memory of the engine."""
        engine = self.engine
        return float(engine.memory_info().rss) / 2**20 if engine is not None else 0.0

    async def stop(self) -> int:
        """SIGTERM; the exit status."""
        if self._process.returncode is None:
            self._process.terminate()
        try:
            status = await asyncio.wait_for(self._process.wait(), STOP_SECONDS)
        except TimeoutError:
            self._process.kill()
            status = await self._process.wait()
        await self._lines
        return status


async def _read_on(stdout: asyncio.StreamReader) -> None:
    async for _ in stdout:
        pass
