"""What the API process sees of an engine, whoever runs it, and what every client does with outputs and replies.

Knows nothing of processes or threads: a transport calls ``_attach``, ``_receive`` and ``_detach``. Asyncio-confined.
"""

from __future__ import annotations

import asyncio
import logging
from abc import abstractmethod
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
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
from server.engine.ipc.flights import Flight, Flights
from server.engine.ipc.outage import Outage
from server.engine.messages import (
    Abort,
    AdapterFailed,
    AdapterLoaded,
    AdapterUnloaded,
    EngineFailed,
    EngineInfo,
    EngineRequest,
    EngineStats,
    FinishReason,
    FromEngine,
    LoadAdapter,
    RequestOutput,
    StepOutputs,
    ToEngine,
    UnloadAdapter,
)
from server.errors import ADAPTER_MEMORY, AdapterFailedError, BudgetError, EngineStartError, EngineUnavailableError


def _nothing() -> None:
    """Nobody asked."""


def _keep() -> bool:
    """A reader that has taken an output has used it."""
    return False


class EngineClient(Protocol):
    """An engine behind any transport: a child process, this process, a replica elsewhere."""

    @property
    def ready(self) -> bool:
        """Whether requests are served now (False while starting or restarting)."""

    @property
    def unavailable(self) -> str:
        """Why no requests are served now, in words for a client; empty while they are."""

    @property
    def info(self) -> EngineInfo:
        """What the engine runs; valid once ``start`` has returned."""

    @property
    def stats(self) -> EngineStats:
        """The newest statistics."""

    @property
    @abstractmethod
    def resident(self) -> frozenset[AdapterKey]:
        """The adapters that are loaded."""

    @abstractmethod
    async def start(self) -> None:
        """Start and wait until ready. Raises EngineStartError with the engine's own reason."""

    def submit(
        self,
        request: EngineRequest,
        on_end: Callable[[], None] = _nothing,
        restart: Callable[[], bool] = _keep,
    ) -> AsyncIterator[RequestOutput]:
        """Hand over a request; iterate its outputs up to the terminal one.

        ``on_end`` is called once, when the engine has ended the request: its outputs may still wait to be taken.
        Leaving the iterator early (``aclose``, cancellation) aborts the request. Raises EngineUnavailableError when
        the engine is down.

        When the engine dies underneath, the request is computed anew, from its beginning, by the next one if that can
        be: if no output has been taken yet, or ``restart`` says that the reader has forgotten what it took. Otherwise
        the iterator raises EngineUnavailableError; or RequestEndsEngineError, where engines end because of this one.
        """

    async def load_adapter(self, key: AdapterKey, path: Path, *others: Path, allow_noop: bool = False) -> AdapterLoaded:
        """Make an adapter resident; raises an AdapterError subclass, or BudgetError, when it is refused.

        One that answers exactly as the base does is refused unless ``allow_noop``. Of a combination these are the
        packages of its members.
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
LONG_PROMPT = 4096  # tokens; to hand one over takes a while, and there may be many
RESTARTING = "the engine is starting or restarting; try again shortly"
_ERRORS = {
    error.code: error
    for error in (AdapterError, PackageError, PackageChangedError, UnsupportedKindError, BaseMismatchError)
}


@dataclass(frozen=True)
class _Load:
    """A load that has been asked for and not been answered."""

    paths: tuple[Path, ...]
    reply: asyncio.Future[AdapterLoaded]


class ClientCore(EngineClient):
    """Routes messages; the subclass carries them.

    ``on_step`` is called with every StepOutputs, after its outputs have been routed; what it raises goes to the
    loop's exception handler and disturbs nothing. Of the adapters that were loaded those that ``needed`` names come
    back with a new engine before it serves. ``on_lost`` is told which of them did not, and why; it may be loaded again.
    ``on_restart`` is called when the new engine serves. ``restarts`` counts engines after the first, ``resumed``
    sequences that one began anew, once for each time.
    """

    def __init__(self, on_step: OnStep | None = None) -> None:
        self.on_step = on_step
        self.needed: Callable[[], Iterable[AdapterKey]] = lambda: self.resident
        self.on_lost: OnLost = lambda key, reason: None
        self.on_restart = _nothing
        self._info: EngineInfo | None = None
        self._stats = EngineStats()
        self._ready = False
        self._send: Send | None = None
        self._started: asyncio.Future[EngineInfo] | None = None
        self._failure = ""
        self._flights = Flights()
        self._why_down = RESTARTING
        self._loads: dict[AdapterKey, _Load] = {}
        self._unloads: dict[AdapterKey, asyncio.Future[None]] = {}
        self._paths: dict[AdapterKey, tuple[Path, ...]] = {}  # of every adapter that should be resident
        self._died_restoring = False
        self.outage = Outage()
        self.restarts = self.resumed = 0

    # ---- EngineClient ----

    @property
    @override
    def ready(self) -> bool:
        return self._ready

    @property
    @override
    def unavailable(self) -> str:
        return "" if self._ready else self._why_down

    @property
    @override
    def info(self) -> EngineInfo:
        if self._info is None:
            raise EngineUnavailableError("the engine is starting; try again shortly")
        return self._info

    @property
    @override
    def stats(self) -> EngineStats:
        return self._stats

    @property
    def pid(self) -> int | None:
        """The engine's process, where it has one of its own and while it is there."""
        return None

    @property
    @override
    def resident(self) -> frozenset[AdapterKey]:
        """The adapters that are loaded, or will be again after a restart."""
        return frozenset(self._paths)

    def packages(self) -> list[Path]:
        """The directories of adapters that are loaded, or are being. May be asked in any thread."""
        resident, arriving = list(self._paths.values()), [load.paths for load in list(self._loads.values())]
        return [path for paths in (*resident, *arriving) for path in paths]

    @override
    def submit(
        self,
        request: EngineRequest,
        on_end: Callable[[], None] = _nothing,
        restart: Callable[[], bool] = _keep,
    ) -> OutputStream:
        """Send a request now; iterate its outputs. Raises EngineUnavailableError at once when the engine is down."""
        assert request.request_id not in self._flights, f"request {request.request_id} is already running"
        self._checked_send()(request)
        flight = Flight(request, OutputBuffer(), restart, on_end, sent=True)
        self._flights.add(flight)
        return OutputStream(flight.buffer, partial(self._abandon, request.request_id))

    @override
    async def load_adapter(self, key: AdapterKey, path: Path, *others: Path, allow_noop: bool = False) -> AdapterLoaded:
        """Make an adapter resident. Raises AdapterError when it is refused, EngineUnavailableError when down."""
        self._checked_send()
        return await self._load(key, (path, *others), allow_noop)

    @override
    async def unload_adapter(self, key: AdapterKey, *, force: bool = False) -> None:
        """Drop an adapter and wait for it. With the engine down it is gone already, and is not loaded again."""
        self._paths.pop(key, None)
        if force:
            for flight in self._flights.take_waiting(key):
                flight.end(FinishReason.ABORT)
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
                    self._paths[message.key] = load.paths
                    _resolve(load.reply, message)
            case AdapterFailed():
                if (load := self._loads.pop(message.key, None)) is not None:
                    _refuse(load.reply, _adapter_error(message))
            case AdapterUnloaded():
                self._paths.pop(message.key, None)
                _resolve(self._unloads.pop(message.key, None), None)

    async def _restore(self) -> None:
        """Load again what was resident and is needed. One that cannot be is dropped and told of: the others are served.

        After a life that ended here they are loaded one by one. One that ends another such life is dropped as well,
        for it would end every life.
        """
        needed = [key for key in self.needed() if key in self._paths]
        self._paths = {key: self._paths[key] for key in needed}
        keys, one_by_one = needed, self._died_restoring
        self._died_restoring = True
        for group in [[key] for key in keys] if one_by_one else [keys]:
            try:
                await self._load_again(group)
            except EngineUnavailableError:
                if one_by_one:
                    self._drop(group[0], "the engine ended while it was being loaded, alone as well")
                raise
        self._died_restoring = False

    async def _resume(self) -> None:
        """Serve, and first those whom the last engine has left. Raises EngineUnavailableError if this one dies."""
        before = self.resumed
        for flight in self._flights.due():
            self._send_again(flight)
            if len(flight.request.prompt_ids) > LONG_PROMPT:
                await asyncio.sleep(0)
                self._reachable()
        self._ready = True
        self._send_next()
        self.outage.serves(self.resumed - before)

    def _give_up_waiting(self, reason: str) -> None:
        """No engine is to be had: end the requests that wait for one."""
        for flight in self._flights.take_waiting():
            flight.fail(EngineUnavailableError(reason))

    def _interrupted(self) -> None:
        """The engine serves no more: no request is taken."""
        if self._ready:
            self.outage.begin()
        self._ready = False

    def _detach(self, ending: str, *, for_good: bool = True) -> None:
        """The engine is gone: end whatever waits for it. ``ending`` says how it went.

        Unless it is ``for_good``, requests that can be computed anew wait for the next engine.
        """
        self._interrupted()
        self._send = None
        self._stats = EngineStats()
        reason = self._failure or ending
        _refuse(self._started, EngineStartError(reason))
        self._report_in_flight()
        for flight, error in self._flights.end_all() if for_good else self._flights.lost():
            flight.fail(error)
        for load in self._loads.values():
            _refuse(load.reply, EngineUnavailableError("the engine stopped while loading the adapter; try again"))
        for unload in self._unloads.values():
            _resolve(unload, None)
        self._loads.clear()
        self._unloads.clear()

    # ---- inside ----

    def _report_in_flight(self) -> None:
        """Whose requests an engine leaves: it cannot be told which of them ended it, if any did."""
        keys = [flight.request.adapter for flight in self._flights if flight.sent]
        owners = Counter("the base" if key is None else str(key) for key in keys)
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
        for flight in self._flights.take_waiting(key):
            flight.fail(AdapterFailedError(f"{key} could not be loaded again when the engine was restarted: {reason}"))

    def _checked_send(self) -> Send:
        if not self._ready:
            raise EngineUnavailableError(self._why_down)
        return self._reachable()

    def _reachable(self) -> Send:
        if self._send is None:
            raise EngineUnavailableError(self._why_down)
        return self._send

    def _send_again(self, flight: Flight) -> None:
        self.resumed += 1
        self._reachable()(flight.request)

    def _send_next(self) -> None:
        """Send the suspect whose turn has come, if one has."""
        if self._ready and (flight := self._flights.next_suspect()) is not None:
            self._send_again(flight)

    async def _load(self, key: AdapterKey, paths: tuple[Path, ...], allow_noop: bool) -> AdapterLoaded:
        if self._send is None:
            raise EngineUnavailableError("the engine stopped while loading the adapter; try again")
        load = self._loads.get(key)
        if load is None:
            load = self._loads[key] = _Load(paths, _quiet_future())
            path, *others = map(str, paths)
            self._send(LoadAdapter(key, path, allow_noop, tuple(others)))
        return await asyncio.shield(load.reply)

    def _abandon(self, request_id: str) -> None:
        if (flight := self._flights.remove(request_id)) is not None:
            if flight.sent and self._send is not None:
                self._send(Abort(request_id))
            flight.on_end()
            self._send_next()

    def _route(self, step: StepOutputs) -> None:
        self._stats = step.stats
        for output in step.outputs:
            self._deliver(output)
        if self.on_step is not None:
            asyncio.get_running_loop().call_soon(self.on_step, step)

    def _deliver(self, output: RequestOutput) -> None:
        flight = self._flights.heard(output)
        if flight is None:
            return
        flight.buffer.put(output)
        if flight.deaths and output.token_ids:
            self.outage.token()
        if output.finish_reason is not None:
            self._flights.remove(output.request_id)
            flight.on_end()
        self._send_next()


def _adapter_error(message: AdapterFailed) -> AdapterError | BudgetError:
    if message.code == ADAPTER_MEMORY:
        return BudgetError(message.message, code=message.code, nbytes=message.nbytes)
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
