"""Who changed what, or was refused it: one row for each, written in the transaction of the change itself.

Pure; also says which rows a reader asks for, and how many refusals of one sort are written down.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Mapping
from contextvars import ContextVar
from typing import Any, Literal

import msgspec

Outcome = Literal["done", "refused"]
FLAG = "flag"  # the actor who holds a key of a flag or a file
LOCAL = "local"  # programs of this machine where no key is asked for, and the command line on the catalog
ANONYMOUS = "anonymous"  # who has no key, or a wrong one
KEY_ACTIONS = "key."  # what the actions on API keys begin with
JOB_ACTIONS = ("fine_tuning.", "batch.")  # and those on jobs
MAX_PAGE = 1000


class Actor(msgspec.Struct, frozen=True):
    """Whose doing it is: a key's id or what stands for one, the address it came from, and the request's id."""

    name: str = "server"
    address: str = ""
    request_id: str = ""


_SERVER = Actor()
ACTOR: ContextVar[Actor] = ContextVar("actor", default=_SERVER)  # tasks and threads that a request starts take it over


class Event(msgspec.Struct, frozen=True):
    """What was done. ``detail`` is for people and programs, and goes into JSON."""

    action: str
    version: int | None = None
    detail: Mapping[str, Any] = {}


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """An event as it is kept. ``name`` is that of an adapter of ``base``, or the id of a key; ``time`` Unix seconds."""

    actor: Actor
    event: Event
    time: float
    name: str = ""
    base: str = ""
    outcome: Outcome = "done"
    id: int | None = None


def told(event: Event, name: str = "", base: str = "", *, outcome: Outcome = "done") -> Entry:
    """``event`` as it is kept of now; whose doing it is, the context knows."""
    return Entry(actor=ACTOR.get(), event=event, time=time.time(), name=name, base=base, outcome=outcome)


def entry_data(entry: Entry) -> dict[str, Any]:
    """What is told of an event, as plain data."""
    actor, event = entry.actor, entry.event
    return {
        "object": "event",
        "id": entry.id,
        "time": entry.time,
        "actor": actor.name,
        "address": actor.address or None,
        "request_id": actor.request_id or None,
        "action": event.action,
        "base": entry.base or None,
        "name": entry.name or None,
        "version": event.version,
        "outcome": entry.outcome,
        "detail": event.detail,
    }


class EventQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Which events are asked for: all that is given must hold. ``since`` is included, ``until`` is not.

    ``before``, time and id, is of the last event that was seen: older ones follow. ``adapters`` are patterns of the
    names that the reader may know of (None: all): of anything else, keys too, nothing is told.
    """

    name: str | None = None
    actor: str | None = None
    action: str | None = None
    outcome: Outcome | None = None
    since: float | None = None
    until: float | None = None
    before: tuple[float, int] | None = None
    limit: int = 100
    adapters: tuple[str, ...] | None = None


class Repetitions:
    """Lets the first event of a sort through in each ``window`` of seconds, of ``most`` sorts; counts the others.

    Somebody who tries keys would fill the trail, and the disk, otherwise.
    """

    def __init__(self, window: float = 60.0, most: int = 100) -> None:
        self._window = window
        self._most = most
        self._began = float("-inf")
        self._counts: dict[Hashable, int] = {}
        self._left_out: list[tuple[Hashable, int]] = []

    def passes(self, sort: Hashable, now: float) -> bool:
        """Whether an event is the first of its sort. ``now`` is a monotonic clock's."""
        self._turn(now)
        if sort not in self._counts and len(self._counts) >= self._most:
            self._counts[None] = self._counts.get(None, 1) + 1
            return False
        self._counts[sort] = self._counts.get(sort, 0) + 1
        return self._counts[sort] == 1

    def left_out(self, now: float) -> list[tuple[Hashable, int]]:
        """Sorts of windows that have passed, with how many of each were left out: once. None: of all further sorts."""
        self._turn(now)
        found, self._left_out = self._left_out, []
        return found

    def _turn(self, now: float) -> None:
        if now - self._began < self._window:
            return
        self._left_out = [(sort, count - 1) for sort, count in self._counts.items() if count > 1] + self._left_out
        del self._left_out[2 * self._most :]  # nobody has asked for a while
        self._began, self._counts = now, {}
