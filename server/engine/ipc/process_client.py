"""The engine in a child process, supervised: when it dies it is started again.

Asyncio-confined. Messages are ``server.engine.ipc.client``'s business.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from dataclasses import dataclass

import msgspec
from typing_extensions import override

from server.config import EngineConfig
from server.engine.ipc.client import RESTARTING, ClientCore, OnStep
from server.engine.ipc.transport import TransportError, decode_from_engine, encode, frame, read_frame
from server.engine.ipc.watchdog import BEAT_SECONDS, Watchdog
from server.engine.messages import FromEngine, Shutdown, ToEngine
from server.errors import EngineStartError, EngineUnavailableError


@dataclass(frozen=True)
class RestartPolicy:
    """Delays double from ``first_delay``; after ``quick_failures`` deaths in a row they are ``slow_delay`` for good.

    A life that served for at least ``healthy_seconds`` ends a row: its death is answered at once. All in seconds.
    """

    first_delay: float = 0.25
    quick_failures: int = 6
    slow_delay: float = 60.0
    healthy_seconds: float = 60.0

    def failures_after(self, failures: int, served_seconds: float) -> int:
        """Deaths in a row, after one more life that served that long."""
        return 0 if served_seconds >= self.healthy_seconds else failures + 1

    def delay(self, failures: int) -> float:
        """Seconds to wait before the next start."""
        if failures == 0:
            return 0.0
        if self.given_up(failures):
            return self.slow_delay
        return float(min(self.slow_delay, self.first_delay * 2 ** (failures - 1)))

    def given_up(self, failures: int) -> bool:
        """Whether an operator should look: restarts go on, but slowly."""
        return failures > self.quick_failures


READ_BUFFER_BYTES = 1 << 20
DUMP_SECONDS = 0.5  # for a hung process to write what it was doing, if it still can
LINGER_SECONDS = 1.0  # for what a dead child has sent to be read


class EngineChild:
    """A running engine process. Asyncio-confined."""

    def __init__(self, process: Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        self._ending = False
        self._killed_because = ""
        self._watch = asyncio.create_task(self._hang_up_after_exit())

    @classmethod
    async def spawn(cls, config: EngineConfig) -> EngineChild:
        """Start a process and hand it its settings. Raises OSError when there can be none."""
        ours, theirs = socket.socketpair()
        level = logging.getLevelName(logging.getLogger().getEffectiveLevel()).lower()
        # -P: the working directory may hold folders that are named like our packages.
        command = [sys.executable, "-P", "-m", "server.engine.ipc.process", "--fd", str(theirs.fileno())]
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                *("--log-level", level),
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                process_group=0,  # Ctrl-C in a terminal is for us alone, from the child's first moment on
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
            if not self._ending:
                logger.warning("engine connection: %s", error)

    async def end(self, grace: float) -> str:
        """Send no more, wait ``grace`` seconds for the process to end, then kill it; returns how it ended, in words."""
        self._ending = True
        if not self._writer.is_closing():
            self._writer.write_eof()
        try:
            async with asyncio.timeout(grace):
                await self._process.wait()
        except TimeoutError:
            self._kill("the server stops" if grace == 0 else f"it did not end by itself within {grace:g} s")
        return self._ending_of(await self._process.wait())

    async def kill(self, reason: str) -> None:
        """End a process that hangs, after it was asked to write to its stderr where it does."""
        self._killed_because = reason
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGUSR1)
        await asyncio.sleep(DUMP_SECONDS)
        self._kill(reason)

    async def hang_up(self) -> None:
        """Close our end; the process has ended and been read to the last byte."""
        self._watch.cancel()
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    def _kill(self, reason: str) -> None:
        self._killed_because = self._killed_because or reason
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    def _ending_of(self, status: int) -> str:
        if self._killed_because:
            return f"the engine process was killed: {self._killed_because}"
        if status >= 0:
            return f"the engine process ended with status {status}; its log says why"
        name = signal.Signals(-status).name
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        return f"the engine process was ended by {name}{hint}"

    async def _hang_up_after_exit(self) -> None:
        """The socket alone would not tell, should something the child started still hold its end."""
        await self._process.wait()
        await asyncio.sleep(LINGER_SECONDS)
        self._writer.transport.abort()


logger = logging.getLogger(__name__)
START_TRIES = 2  # the memory of an engine that was killed may be free a moment later only
END_SECONDS = 5.0  # for a process to end by itself before it is killed
DEFAULT_POLICY = RestartPolicy()


class ProcessEngineClient(ClientCore):
    """An EngineClient whose engine is a process of its own.

    When the process dies, ``ready`` is False, adapter loads in flight end with EngineUnavailableError, and so do
    requests that cannot be computed anew (see ``submit``). It is started again after a delay that grows with failures;
    adapters that are needed are loaded, and the other requests handed over, before ``ready`` is True again. A
    process that hangs is killed: the same follows. Requests wait until starts are given up: when one has failed
    ``START_TRIES`` times in a row with a reason of its own, or when the policy does not hurry any more.
    """

    def __init__(
        self, config: EngineConfig, *, policy: RestartPolicy = DEFAULT_POLICY, on_step: OnStep | None = None
    ) -> None:
        super().__init__(on_step)
        self._config = config
        self._policy = policy
        self._closing = False
        self._child: EngineChild | None = None
        self._reading: asyncio.Task[None] | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._ready_since: float | None = None

    @property
    @override
    def pid(self) -> int | None:
        """The process's id, while there is one."""
        return self._child.pid if self._child is not None else None

    @override
    async def start(self) -> None:
        """Start the process and wait until it serves. Raises EngineStartError with its own reason."""
        assert self._supervisor is None, "already started"
        try:
            await self._launch()
        except BaseException:
            await self.close()
            raise
        self._supervisor = asyncio.create_task(self._supervise(), name="engine-supervisor")

    @override
    async def close(self) -> None:
        """Stop the process. Outstanding requests end with EngineUnavailableError; a second call does nothing."""
        self._closing, self._why_down = True, "the server is shutting down"
        if self._supervisor is not None:
            self._supervisor.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._supervisor
        grace = END_SECONDS if self._ready else 0.0  # a half-started engine has nothing to finish
        self._ready = False
        if self._child is not None:
            self._child.send(Shutdown())
            await self._child.end(grace)
        if self._reading is not None:
            await self._reading
        self._give_up_waiting(self._why_down)

    async def _launch(self) -> None:
        """One start, up to ready. Raises EngineStartError, or EngineUnavailableError if it dies while restoring."""
        try:
            self._child = await EngineChild.spawn(self._config)
        except OSError as error:
            raise EngineStartError(f"cannot start the engine process: {error}") from error
        started, watchdog = self._attach(self._child.send), Watchdog(self._config)
        self._reading = asyncio.create_task(self._read(self._child, watchdog), name="engine-reader")
        await started
        await self._restore()
        watchdog.serving()
        await self._resume()
        self._ready_since = time.monotonic()

    async def _read(self, child: EngineChild, watchdog: Watchdog) -> None:
        """Route what the process sends until it has gone, then end whatever waits for it."""
        watching = asyncio.create_task(self._watch(child, watchdog), name="engine-watchdog")
        async for message in child.messages():
            watchdog.heard(message)
            self._receive(message)
        watching.cancel()
        self._interrupted()
        ending = await child.end(END_SECONDS)
        await child.hang_up()
        logger.info("%s", ending)
        self._child = None
        self._detach(ending, for_good=self._closing)

    async def _watch(self, child: EngineChild, watchdog: Watchdog) -> None:
        """Kill the process once it hangs; whatever waits for it ends first, for a process may take long to die."""
        while (reason := watchdog.tick()) is None:
            await asyncio.sleep(BEAT_SECONDS)
        logger.error("the engine process %d hangs: %s", child.pid, reason)
        self._detach(f"the engine process hung: {reason}", for_good=self._closing)
        await child.kill(reason)

    async def _supervise(self) -> None:
        failures = refusals = 0
        while True:
            if self._reading is not None:
                await asyncio.shield(self._reading)
            failures = self._policy.failures_after(failures, self._served_seconds())
            await self._pause(failures, refusals)
            self.restarts += 1
            try:
                await self._launch()
            except (EngineStartError, EngineUnavailableError) as error:
                logger.error("the engine did not start again: %s", error)
                refusals += bool(self._failure)
            else:
                logger.info("the engine serves again (restart %d)", self.restarts)
                self.on_restart()
                refusals = 0

    async def _pause(self, failures: int, refusals: int) -> None:
        """Wait before the next start, after deaths in a row, and starts that failed with a reason of their own."""
        delay = self._policy.delay(failures)
        self._why_down = RESTARTING
        if refusals:
            self._why_down = (
                f"the engine does not start again: {refusals} tries have failed, the server's log says why; "
                f"the next is in {delay:.3g} s"
            )
        elif self._policy.given_up(failures):
            self._why_down = f"the engine died {failures} times in a row; it is started again in {delay:.3g} s"
        if self._policy.given_up(failures):
            logger.error("the engine died %d times in a row; next start in %.0f s", failures, delay)
        else:
            logger.warning("the engine died; starting it again in %.2f s", delay)
        if refusals >= START_TRIES or self._policy.given_up(failures):
            self._give_up_waiting(self._why_down)
        await asyncio.sleep(delay)

    def _served_seconds(self) -> float:
        """How long the last life served; asked once a life."""
        since, self._ready_since = self._ready_since, None
        return 0.0 if since is None else time.monotonic() - since
