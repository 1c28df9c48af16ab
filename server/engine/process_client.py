"""The engine in a child process, supervised: when it dies it is started again with the same adapters.

Asyncio-confined. Messages are ``client_core``'s business, the process itself ``child``'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time

from server.config import EngineConfig
from server.engine.child import EngineChild
from server.engine.client_core import ClientCore, OnStep
from server.engine.messages import Shutdown
from server.engine.restart import RestartPolicy
from server.errors import EngineStartError, EngineUnavailableError

logger = logging.getLogger(__name__)

END_SECONDS = 5.0  # for a process to end by itself before it is killed
DEFAULT_POLICY = RestartPolicy()


class ProcessEngineClient(ClientCore):
    """An EngineClient whose engine is a process of its own.

    When the process dies, requests and adapter loads in flight end with EngineUnavailableError, ``ready`` is False,
    and the process is started again after a delay that grows with failures; adapters that were resident are loaded
    before ``ready`` is True again.
    """

    def __init__(
        self, config: EngineConfig, *, policy: RestartPolicy = DEFAULT_POLICY, on_step: OnStep | None = None
    ) -> None:
        super().__init__(on_step)
        self._config = config
        self._policy = policy
        self._restarts = 0
        self._child: EngineChild | None = None
        self._reading: asyncio.Task[None] | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._ready_since: float | None = None

    @property
    def restarts(self) -> int:
        """How often the process was started again after it had died."""
        return self._restarts

    @property
    def pid(self) -> int | None:
        """The process's id, while there is one."""
        return self._child.pid if self._child is not None else None

    async def start(self) -> None:
        """Start the process and wait until it serves. Raises EngineStartError with its own reason."""
        assert self._supervisor is None, "already started"
        try:
            await self._launch()
        except BaseException:
            await self.close()
            raise
        self._supervisor = asyncio.create_task(self._supervise(), name="engine-supervisor")

    async def close(self) -> None:
        """Stop the process. Outstanding requests end with EngineUnavailableError; a second call does nothing."""
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

    async def _launch(self) -> None:
        """One start, up to ready. Raises EngineStartError, or EngineUnavailableError if it dies while restoring."""
        try:
            self._child = await EngineChild.spawn(self._config)
        except OSError as error:
            raise EngineStartError(f"cannot start the engine process: {error}") from error
        started = self._attach(self._child.send)
        self._reading = asyncio.create_task(self._read(self._child), name="engine-reader")
        await started
        await self._restore()
        self._ready, self._ready_since = True, time.monotonic()

    async def _read(self, child: EngineChild) -> None:
        """Route what the process sends until it has gone, then end whatever waits for it."""
        async for message in child.messages():
            self._receive(message)
        self._ready = False
        ending = await child.end(END_SECONDS)
        await child.hang_up()
        logger.info("%s", ending)
        self._child = None
        self._detach(ending)

    async def _supervise(self) -> None:
        failures = 0
        while True:
            if self._reading is not None:
                await asyncio.shield(self._reading)
            failures = self._policy.failures_after(failures, self._served_seconds())
            await self._pause(failures)
            self._restarts += 1
            try:
                await self._launch()
            except (EngineStartError, EngineUnavailableError) as error:
                logger.error("the engine did not start again: %s", error)
            else:
                logger.info("the engine serves again (restart %d)", self._restarts)

    async def _pause(self, failures: int) -> None:
        delay = self._policy.delay(failures)
        if self._policy.given_up(failures):
            logger.error("the engine died %d times in a row; next start in %.0f s", failures, delay)
        else:
            logger.warning("the engine died; starting it again in %.2f s", delay)
        await asyncio.sleep(delay)

    def _served_seconds(self) -> float:
        """How long the last life served; asked once a life."""
        since, self._ready_since = self._ready_since, None
        return 0.0 if since is None else time.monotonic() - since
