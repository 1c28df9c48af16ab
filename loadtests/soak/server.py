"""A server under test: a subprocess that is asked for its address, looked at from outside, killed and started again."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import time
from asyncio.subprocess import Process
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import psutil

from loadtests.soak.asking import open_session

ENGINE = "server.engine.ipc.process"  # what the command line of the engine's process contains
STOP_SECONDS = 60.0
AGAIN_SECONDS = 0.5  # between two attempts to start, as those who supervise servers leave
COMMAND = (sys.executable, "-m", "hotswap", "serve", "--port")


class Server:
    """A ``hotswap serve``. ``url`` has no slash at its end, and stays the same when it is started again.

    ``hitting``: who kills it, or its engine, does so alone.
    """

    def __init__(self, flags: Sequence[str], log: Path) -> None:
        self.name = log.stem
        self.hitting = asyncio.Lock()
        self._flags, self._log = flags, log
        self._port = 0
        self.url: str
        self.session: aiohttp.ClientSession
        self._process: Process
        self._lines: asyncio.Task[None]

    @classmethod
    async def start(cls, flags: Sequence[str], log: Path) -> Server:
        """Start it and wait until it serves; its log goes to a file. Raises RuntimeError when it ends instead."""
        server = cls(flags, log)
        log.write_bytes(b"")
        server.url = await server._launch()
        server._port = urlsplit(server.url).port or 0
        server.session = open_session(server.url)
        return server

    async def _launch(self) -> str:
        with self._log.open("ab") as errors:
            process = await asyncio.create_subprocess_exec(
                *COMMAND, str(self._port), *self._flags,
                stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=errors,
            )  # fmt: skip
        assert process.stdout is not None
        async for line in process.stdout:
            word, _, rest = line.decode().strip().partition(" ")
            if word == "listening":
                self._process, self._lines = process, asyncio.create_task(_read_on(process.stdout))
                return rest.split()[0]
        raise RuntimeError(f"the server ended with status {await process.wait()}; see {self._log}")

    async def kill(self) -> psutil.Process | None:
        """SIGKILL; returns its engine, which should end by itself."""
        engine = self.engine
        self._process.kill()
        await self._process.wait()
        self._lines.cancel()  # its engine, as long as it lives, may hold the other end
        return engine

    async def start_again(self, seconds: float) -> bool:
        """Start it where it was, again and again for so long; whether it serves."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with contextlib.suppress(RuntimeError):
                await self._launch()
                return True
            await asyncio.sleep(AGAIN_SECONDS)
        return False

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
        await self.session.close()
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
