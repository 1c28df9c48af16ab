"""The engine in a thread of this process: for tests. It is not supervised.

Asyncio-confined; the thread talks to the loop through ``call_soon_threadsafe`` and is talked to through a queue.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
from collections.abc import Callable
from functools import partial
from threading import Thread

from typing_extensions import override

from server.config import EngineConfig
from server.engine.engine_loop import Inbox, SteppableEngine, build_engine, run_engine
from server.engine.ipc.client import ClientCore, OnStep
from server.engine.messages import EngineInfo, Shutdown
from server.errors import EngineStartError, EngineUnavailableError

BuildFrom = Callable[[EngineConfig], tuple[SteppableEngine, EngineInfo]]


class LocalEngineClient(ClientCore):
    """An EngineClient whose engine runs in a daemon thread. ``build`` makes the engine, in that thread."""

    def __init__(self, config: EngineConfig, *, build: BuildFrom = build_engine, on_step: OnStep | None = None) -> None:
        super().__init__(on_step)
        self._build = partial(build, config)
        self._inbox: Inbox = queue.SimpleQueue()
        self._thread: Thread | None = None
        self._ended: asyncio.Future[None] | None = None

    @override
    async def start(self) -> None:
        """Start the thread and wait until it serves. Raises EngineStartError with the engine's own reason."""
        assert self._thread is None, "already started"
        await self._launch()
        self._ready = True

    async def _launch(self) -> None:
        loop = asyncio.get_running_loop()
        self._ended = loop.create_future()
        started = self._attach(self._inbox.put)
        self._thread = Thread(target=self._run, args=(loop, self._ended), name="engine", daemon=True)
        self._thread.start()
        await started

    @override
    async def close(self) -> None:
        """Stop the thread; outstanding requests end with EngineUnavailableError."""
        if self._thread is not None and self._ended is not None:
            self._inbox.put(Shutdown())
            await asyncio.shield(self._ended)
            self._thread.join()

    def _run(self, loop: asyncio.AbstractEventLoop, ended: asyncio.Future[None]) -> None:
        def emit_to(callback: Callable[..., object], *args: object) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has been closed without closing us
                loop.call_soon_threadsafe(callback, *args)

        try:
            run_engine(self._build, self._inbox, partial(emit_to, self._receive))
        finally:  # also of what is no Exception, as what Rust panics with
            emit_to(self._finish, ended)

    def _finish(self, ended: asyncio.Future[None]) -> None:
        if not ended.done():
            ended.set_result(None)  # what follows may fail
        self._detach("the engine was closed")


class RestartingLocalClient(LocalEngineClient):
    """An engine that ends is started again at once, as ``ProcessEngineClient`` does with a process."""

    _closing = False
    _starting: asyncio.Task[None] | None = None

    @override
    async def close(self) -> None:
        self._closing = True
        if self._starting is not None:
            await self._starting
        await super().close()

    @override
    def _finish(self, ended: asyncio.Future[None]) -> None:
        if not ended.done():
            ended.set_result(None)
        self._detach("the engine ended", for_good=self._closing)
        if not self._closing:
            self._starting = asyncio.create_task(self._start_again())

    async def _start_again(self) -> None:
        self.restarts += 1
        with contextlib.suppress(EngineStartError, EngineUnavailableError):  # it has ended again: so will this
            await self._launch()
            await self._restore()
            await self._resume()
            self.on_restart()
