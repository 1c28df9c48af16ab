"""One engine process and the socket to it: spawn, send, receive, end. Knows nothing of requests or restarts."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator

import msgspec

from server.config import EngineConfig
from server.engine.messages import FromEngine, ToEngine
from server.engine.transport import TransportError, decode_from_engine, encode, frame, read_frame

logger = logging.getLogger(__name__)

READ_BUFFER_BYTES = 1 << 20
LINGER_SECONDS = 1.0  # for what a dead child has sent to be read


class EngineChild:
    """A running engine process. Asyncio-confined."""

    def __init__(self, process: Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        self._ending = False
        self._watch = asyncio.create_task(self._hang_up_after_exit())

    @classmethod
    async def spawn(cls, config: EngineConfig) -> EngineChild:
        """Start a process and hand it its settings. Raises OSError when there can be none."""
        ours, theirs = socket.socketpair()
        level = logging.getLevelName(logging.getLogger().getEffectiveLevel()).lower()
        # -P: the working directory may hold folders that are named like our packages.
        command = [sys.executable, "-P", "-m", "server.engine.process", "--fd", str(theirs.fileno())]
        try:
            process = await asyncio.create_subprocess_exec(
                *command, "--log-level", level, stdin=asyncio.subprocess.DEVNULL, pass_fds=(theirs.fileno(),)
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        try:
            reader, writer = await asyncio.open_unix_connection(sock=ours, limit=READ_BUFFER_BYTES)
        except BaseException:
            process.kill()
            ours.close()
            raise
        writer.write(frame(msgspec.json.encode(config)))
        return cls(process, reader, writer)

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def send(self, message: ToEngine) -> None:
        """Queue a message; lost if the process has died or was told to end, which ``messages`` tells by ending."""
        if not self._ending and not self._writer.is_closing():
            self._writer.write(encode(message))

    async def messages(self) -> AsyncIterator[FromEngine]:
        """What the process sends, until it has gone."""
        try:
            while (payload := await read_frame(self._reader)) is not None:
                yield decode_from_engine(payload)
        except TransportError as error:
            logger.warning("engine connection: %s", error)

    async def end(self, grace: float) -> str:
        """Send no more, wait ``grace`` seconds for the process to end, then kill it; returns how it ended, in words."""
        self._ending = True
        if not self._writer.is_closing():
            self._writer.write_eof()
        try:
            await asyncio.wait_for(self._process.wait(), grace)
        except TimeoutError:
            logger.warning("engine process %d does not end by itself; killing it", self.pid)
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        return _ending(await self._process.wait())

    async def hang_up(self) -> None:
        """Close our end; the process has ended and been read to the last byte."""
        self._watch.cancel()
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def _hang_up_after_exit(self) -> None:
        """The socket alone would not tell, should something the child started still hold its end."""
        await self._process.wait()
        await asyncio.sleep(LINGER_SECONDS)
        self._writer.transport.abort()


def _ending(status: int) -> str:
    if status >= 0:
        return f"the engine process ended with status {status}; its log says why"
    name = signal.Signals(-status).name
    hint = " (out of memory?)" if name == "SIGKILL" else ""
    return f"the engine process was ended by {name}{hint}"
