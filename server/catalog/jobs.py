"""Work that goes on behind requests, as rows: fine-tuning jobs and batches, and what happened in them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

Wish = Literal["", "pause"]
Level = Literal["info", "warn", "error"]
EventType = Literal["message", "metrics"]


class JobRow(msgspec.Struct, frozen=True, kw_only=True):
    """One job. ``record`` is what its ``kind`` knows of it, in JSON; ``created`` Unix seconds.

    ``place`` is the folder of jobs whose server does it, empty until one has begun. ``wish`` is what its owner wants of
    it, until the server has done that.
    """

    id: str
    kind: str
    owner: str
    status: str
    created: float
    record: str
    place: str = ""
    wish: Wish = ""
    number: int = 0  # in the order of creation; 0 until it is kept


class JobEvent(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened in a job."""

    message: str
    level: Level = "info"
    type: EventType = "message"
    data: Mapping[str, Any] | None = None
    time: float = msgspec.field(default_factory=time.time)
    number: int = 0  # 0 until it is kept


class JobQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Which jobs of a ``kind`` are asked for, newest first. ``after`` is the number of the last one that was seen."""

    kind: str
    owner: str | None = None
    statuses: tuple[str, ...] = ()
    after: int | None = None
    limit: int = 100
