"""Who changed what, or was refused it: one row for each, written in the transaction of the change itself."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

import msgspec


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
