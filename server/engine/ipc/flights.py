"""Accepted requests that have not ended, over as many lives of the engine as each takes.

Who is computed again when an engine dies, and which requests that tells against. Carries no message itself.
Asyncio-confined.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from server.adapter_key import AdapterKey
from server.engine.ipc.buffers import OutputBuffer
from server.engine.messages import EngineRequest, FinishReason, RequestOutput
from server.errors import EngineUnavailableError, RequestEndsEngineError

SUSPECT_DEATHS = 2  # one may have had any cause; a request that sees the next one as well may be the cause
MOST_DEATHS = 6  # that a request sees, however they came about
STOPPED = "the engine stopped while serving this request; it can be sent again"
MARGIN = 4  # tokens: a process that is killed takes with it what it has not sent yet


@dataclass(eq=False)
class Flight:
    """One request on its way. ``sent``: the present engine has it; ``tokens`` of its output have come from there.

    ``restart`` tells its reader, and asks whether it can forget what it has taken; when it says True it has. ``deaths``
    are of engines that had it, the furthest that it came in one is ``furthest`` tokens.
    """

    request: EngineRequest
    buffer: OutputBuffer
    restart: Callable[[], bool]
    on_end: Callable[[], None]
    sent: bool = False
    tokens: int = 0
    deaths: int = 0
    furthest: int = 0

    @property
    def is_suspect(self) -> bool:
        """Whether it is not to run beside another that may have ended engines too."""
        return self.deaths >= SUSPECT_DEATHS

    @property
    def is_cleared(self) -> bool:
        """Whether it has come further than where engines ended. That tells once: another may have hidden its end."""
        return self.deaths == SUSPECT_DEATHS and self.tokens > self.furthest + MARGIN

    def end(self, reason: FinishReason) -> None:
        """End it without an engine."""
        self.buffer.put(RequestOutput(request_id=self.request.request_id, finish_reason=reason))
        self.on_end()

    def fail(self, error: Exception) -> None:
        """End it: its reader finds ``error`` behind what it has not taken yet."""
        self.buffer.fail(error)
        self.on_end()

    def wait_again(self) -> None:
        """It begins anew with the next engine."""
        self.buffer.clear()
        self.furthest = max(self.furthest, self.tokens)
        self.tokens, self.sent = 0, False


class Flights:
    """All requests of a client, in the order in which they came.

    When an engine dies, its requests go to the next one together. Those that see that one die as well are suspects,
    and are sent one after another: the next when the one on trial has ended, or, at its first trial, has come further
    than before. One whose trial an engine does not survive is given up if no other suspect ran beside, and the others
    go on.
    """

    def __init__(self) -> None:
        self._all: dict[str, Flight] = {}
        self._line: deque[Flight] = deque()  # suspects that have not been sent
        self._on_trial: Flight | None = None

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._all

    def __iter__(self) -> Iterator[Flight]:
        return iter(list(self._all.values()))

    def add(self, flight: Flight) -> None:
        """A new one."""
        self._all[flight.request.request_id] = flight

    def remove(self, request_id: str) -> Flight | None:
        """Forget one, if it is there."""
        flight = self._all.pop(request_id, None)
        if flight is not None and flight is self._on_trial:
            self._on_trial = None
        return flight

    def heard(self, output: RequestOutput) -> Flight | None:
        """Whose output this is; None when its reader has left, or it is of an engine that was given up already."""
        flight = self._all.get(output.request_id)
        if flight is None or not flight.sent:
            return None
        flight.tokens += len(output.token_ids)
        if flight is self._on_trial and flight.is_cleared:
            self._on_trial = None
        return flight

    def due(self) -> Iterator[Flight]:
        """Those that a new engine is to get at once, each marked as sent when it is handed out."""
        for flight in self:
            known = self._all.get(flight.request.request_id) is flight  # else its reader has left meanwhile
            if known and not (flight.sent or flight.is_suspect):
                flight.sent = True
                yield flight

    def next_suspect(self) -> Flight | None:
        """The suspect whose turn has come, marked as sent; None while another is on trial."""
        while self._line and self._on_trial is None:
            flight = self._line.popleft()
            if self._all.get(flight.request.request_id) is flight:
                flight.sent, self._on_trial = True, flight
                return flight
        return None

    def lost(self) -> list[tuple[Flight, Exception]]:
        """The engine has gone: those that end with it, each with the reason. All others wait for the next."""
        ended = []
        sent = [flight for flight in self if flight.sent]
        guilty = self._on_trial if sum(flight.is_suspect for flight in sent) == 1 else None
        for flight in sent:
            if (error := self._verdict(flight, guilty)) is None:
                flight.wait_again()
            else:
                ended.append((flight, error))
                del self._all[flight.request.request_id]
        self._on_trial = None
        self._line = deque(flight for flight in self if flight.is_suspect)
        return ended

    def take_waiting(self, key: AdapterKey | None = None) -> list[Flight]:
        """Take out those that wait for an engine, or for their turn; with ``key`` only those of that adapter."""
        waiting = [flight for flight in self if not flight.sent and key in (None, flight.request.adapter)]
        for flight in waiting:
            del self._all[flight.request.request_id]
        return waiting

    def end_all(self) -> list[tuple[Flight, Exception]]:
        """There will be no other engine: as ``lost``, for all."""
        flights, self._all = list(self._all.values()), {}
        return [(flight, EngineUnavailableError(STOPPED)) for flight in flights]

    def _verdict(self, flight: Flight, guilty: Flight | None) -> Exception | None:
        """Why a request ends with the engine that had it; None: the next one computes it from its beginning."""
        flight.deaths += 1
        if flight is guilty:
            return RequestEndsEngineError(
                f"the engine ended {flight.deaths} times while it computed this request, which is not tried again"
            )
        if flight.deaths >= MOST_DEATHS:
            return EngineUnavailableError(f"the engine stopped {flight.deaths} times while serving this request")
        if not flight.restart() and flight.buffer.was_read:
            return EngineUnavailableError(STOPPED)
        return None
