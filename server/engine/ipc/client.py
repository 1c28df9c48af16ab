"""What the API process sees of an engine, whoever runs it, and what every client does with outputs and replies.

Knows nothing of processes or threads: a transport calls ``_attach``, ``_receive`` and ``_detach``. Asyncio-confined.
"""

from __future__ import annotations

import asyncio
import logging
from abc import abstractmethod
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from typing_extensions import override

from adapters.errors import (
    AdapterError,
    BaseMismatchError,
    PackageChangedError,
    PackageError,
    UnsupportedKindError,
)
from server.adapter_key import AdapterKey
from server.engine.ipc.buffers import OutputBuffer, OutputStream
from server.engine.messages import (
    Abort,
    AdapterFailed,
    AdapterLoaded,
    AdapterUnloaded,
    EngineFailed,
    EngineInfo,
    EngineRequest,
    EngineStats,
    FromEngine,
    LoadAdapter,
    RequestOutput,
    StepOutputs,
    ToEngine,
    UnloadAdapter,
)
from server.errors import ADAPTER_MEMORY, BudgetError, EngineStartError, EngineUnavailableError


def _nothing() -> None:
    """Nobody asked."""


class EngineClient(Protocol):
    """An engine behind any transport: a child process, this process, a replica elsewhere."""

    @property
    def ready(self) -> bool:
        """Whether requests are served now (False while starting or restarting)."""

    @property
    def info(self) -> EngineInfo:
        """What the engine runs; valid once ``start`` has returned."""

    @property
    def stats(self) -> EngineStats:
        """The newest statistics."""

    @abstractmethod
    async def start(self) -> None:
        """Start and wait until ready. Raises EngineStartError with the engine's own reason."""

    def submit(self, request: EngineRequest, on_end: Callable[[], None] = _nothing) -> AsyncIterator[RequestOutput]:
        """Hand over a request; iterate its outputs up to the terminal one.

        ``on_end`` is called once, when the engine has ended the request: its outputs may still wait to be taken.
        Leaving the iterator early (``aclose``, cancellation) aborts the request. Raises EngineUnavailableError when
        the engine is down or dies underneath: the request may be sent again.
        """

    async def load_adapter(self, key: AdapterKey, path: Path, *, allow_noop: bool = False) -> AdapterLoaded:
        """Make an adapter resident; raises an AdapterError subclass, or BudgetError, when it is refused.

        One that answers exactly as the base does is refused unless ``allow_noop``.
        """

    async def unload_adapter(self, key: AdapterKey, *, force: bool = False) -> None:
        """Drop an adapter when its last request has ended (at once with ``force``), and wait for that."""

    @abstractmethod
    async def close(self) -> None:
        """Stop the engine; outstanding requests end with EngineUnavailableError."""


logger = logging.getLogger(__name__)
T = TypeVar("T")
Send = Callable[[ToEngine], None]
OnStep = Callable[[StepOutputs], None]
OnLost = Callable[[AdapterKey, str], None]
MOST_TOLD = 16  # adapters, in a line of the log
_ERRORS = {
    error.code: error
    for error in (AdapterError, PackageError, PackageChangedError, UnsupportedKindError, BaseMismatchError)
}


@dataclass(frozen=True)
class _Load:
    """A load that has been asked for and not been answered."""

    path: Path
    reply: asyncio.Future[AdapterLoaded]


class ClientCore(EngineClient):
    """Routes messages; the subclass carries them.

    ``on_step`` is called with every StepOutputs, after its outputs have been routed; what it raises goes to the
    loop's exception handler and disturbs nothing. ``on_lost`` is told which adapter did not come back with a new
    engine, and why; it may be loaded again.
    """

    def __init__(self, on_step: OnStep | None = None) -> None:
        self.on_step = on_step
        self.on_lost: OnLost = lambda key, reason: None
        self._info: EngineInfo | None = None
        self._stats = EngineStats()
        self._ready = False
        self._send: Send | None = None
        self._started: asyncio.Future[EngineInfo] | None = None
        self._failure = ""
        self._buffers: dict[str, OutputBuffer] = {}
        self._loads: dict[AdapterKey, _Load] = {}
        self._unloads: dict[AdapterKey, asyncio.Future[None]] = {}
        self._paths: dict[AdapterKey, Path] = {}  # of every adapter that should be resident
        self._died_restoring = False

    # ---- EngineClient ----

    @property
    @override
    def ready(self) -> bool:
        return self._ready

    @property
    @override
    def info(self) -> EngineInfo:
        assert self._info is not None, "the engine has not been started"
        return self._info

    @property
    @override
    def stats(self) -> EngineStats:
        return self._stats

    @property
    def resident(self) -> frozenset[AdapterKey]:
        """The adapters that are loaded, or will be again after a restart."""
        return frozenset(self._paths)

    def packages(self) -> list[Path]:
        """The directories of adapters that are loaded, or are being. May be asked in any thread."""
        return [*self._paths.values(), *(load.path for load in list(self._loads.values()))]

    @override
    def submit(self, request: EngineRequest, on_end: Callable[[], None] = _nothing) -> OutputStream:
        """Send a request now; iterate its outputs. Raises EngineUnavailableError at once when the engine is down."""
        assert request.request_id not in self._buffers, f"request {request.request_id} is already running"
        self._checked_send()(request)
        buffer = self._buffers[request.request_id] = OutputBuffer(on_end=on_end, adapter=request.adapter)
        return OutputStream(buffer, partial(self._abandon, request.request_id))

    @override
    async def load_adapter(self, key: AdapterKey, path: Path, *, allow_noop: bool = False) -> AdapterLoaded:
        """Make an adapter resident. Raises AdapterError when it is refused, EngineUnavailableError when down."""
        self._checked_send()
        return await self._load(key, path, allow_noop)

    @override
    async def unload_adapter(self, key: AdapterKey, *, force: bool = False) -> None:
        """Drop an adapter and wait for it. With the engine down it is gone already, and is not loaded again."""
        self._paths.pop(key, None)
        if self._send is None:
            return
        pending = self._unloads.setdefault(key, asyncio.get_running_loop().create_future())
        self._send(UnloadAdapter(key, force))  # again if asked again: force hastens a drain
        await asyncio.shield(pending)

    # ---- for transports ----

    def _attach(self, send: Send) -> asyncio.Future[EngineInfo]:
        """A new engine can be reached; the future ends when it has started or failed to."""
        self._send, self._failure = send, ""
        self._started = _quiet_future()
        return self._started

    def _receive(self, message: FromEngine) -> None:
        match message:
            case StepOutputs():
                self._route(message)
            case EngineInfo():
                self._info = message
                _resolve(self._started, message)
            case EngineFailed():
                self._failure = message.message
            case AdapterLoaded():
                if (load := self._loads.pop(message.key, None)) is not None:
                    self._paths[message.key] = load.path
                    _resolve(load.reply, message)
            case AdapterFailed():
                if (load := self._loads.pop(message.key, None)) is not None:
                    _refuse(load.reply, _adapter_error(message))
            case AdapterUnloaded():
                self._paths.pop(message.key, None)
                _resolve(self._unloads.pop(message.key, None), None)

    async def _restore(self) -> None:
        """Load again what was resident. One that cannot be is dropped and told of: the others are served.

        After a life that ended here they are loaded one by one. One that ends another such life is dropped as well,
        for it would end every life.
        """
        keys, one_by_one = list(self._paths), self._died_restoring
        self._died_restoring = True
        for group in [[key] for key in keys] if one_by_one else [keys]:
            try:
                await self._load_again(group)
            except EngineUnavailableError:
                if one_by_one:
                    self._drop(group[0], "the engine ended while it was being loaded, alone as well")
                raise
        self._died_restoring = False

    def _detach(self, ending: str) -> None:
        """The engine is gone: end whatever waits for it. ``ending`` says how it went."""
        self._ready, self._send = False, None
        self._stats = EngineStats()
        reason = self._failure or ending
        _refuse(self._started, EngineStartError(reason))
        self._report_in_flight()
        error = EngineUnavailableError("the engine stopped while serving this request; it can be sent again")
        for buffer in self._buffers.values():
            buffer.fail(error)
            buffer.on_end()
        for load in self._loads.values():
            _refuse(load.reply, EngineUnavailableError("the engine stopped while loading the adapter; try again"))
        for unload in self._unloads.values():
            _resolve(unload, None)
        self._buffers.clear()
        self._loads.clear()
        self._unloads.clear()

    # ---- inside ----

    def _report_in_flight(self) -> None:
        """Whose requests an engine leaves: it cannot be told which of them ended it, if any did."""
        owners = Counter("the base" if b.adapter is None else str(b.adapter) for b in self._buffers.values())
        if owners:
            told = ", ".join(f"{owner} {count}" for owner, count in owners.most_common(MOST_TOLD))
            logger.warning("the engine left requests of %d models unfinished: %s", len(owners), told)

    async def _load_again(self, keys: Sequence[AdapterKey]) -> None:
        keys = [key for key in keys if key in self._paths]  # the others were let go meanwhile
        loads = (self._load(key, self._paths[key], allow_noop=True) for key in keys)
        results = await asyncio.gather(*loads, return_exceptions=True)
        for key, result in zip(keys, results, strict=True):
            if isinstance(result, (AdapterError, BudgetError)):
                self._drop(key, str(result))
            elif isinstance(result, BaseException):
                raise result

    def _drop(self, key: AdapterKey, reason: str) -> None:
        logger.error("adapter %s could not be loaded again: %s", key, reason)
        if self._paths.pop(key, None) is not None:  # else it was let go meanwhile
            self.on_lost(key, reason)

    def _checked_send(self) -> Send:
        if not self._ready or self._send is None:
            raise EngineUnavailableError("the engine is starting or restarting; try again shortly")
        return self._send

    async def _load(self, key: AdapterKey, path: Path, allow_noop: bool) -> AdapterLoaded:
        if self._send is None:
            raise EngineUnavailableError("the engine stopped while loading the adapter; try again")
        load = self._loads.get(key)
        if load is None:
            load = self._loads[key] = _Load(path, _quiet_future())
            self._send(LoadAdapter(key, str(path), allow_noop))
        return await asyncio.shield(load.reply)

    def _abandon(self, request_id: str) -> None:
        if (buffer := self._buffers.pop(request_id, None)) is not None:
            if self._send is not None:
                self._send(Abort(request_id))
            buffer.on_end()

    def _route(self, step: StepOutputs) -> None:
        self._stats = step.stats
        for output in step.outputs:
            self._deliver(output)
        if self.on_step is not None:
            asyncio.get_running_loop().call_soon(self.on_step, step)

    def _deliver(self, output: RequestOutput) -> None:
        buffer = self._buffers.get(output.request_id)
        if buffer is None:
            return  # its reader has left
        buffer.put(output)
        if output.finish_reason is not None:
            del self._buffers[output.request_id]
            buffer.on_end()


def _adapter_error(message: AdapterFailed) -> AdapterError | BudgetError:
    if message.code == ADAPTER_MEMORY:
        return BudgetError(message.message, code=message.code)
    error = _ERRORS.get(message.code, AdapterError)(message.message)
    error.code = message.code
    return error


def _quiet_future() -> asyncio.Future[Any]:
    """A future whose error may go unseen: whoever waits for it may have left."""
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    future.add_done_callback(lambda done: done.cancelled() or done.exception())
    return future


def _resolve(future: asyncio.Future[T] | None, result: T) -> None:
    if future is not None and not future.done():
        future.set_result(result)


def _refuse(future: asyncio.Future[Any] | None, error: Exception) -> None:
    if future is not None and not future.done():
        future.set_exception(error)
