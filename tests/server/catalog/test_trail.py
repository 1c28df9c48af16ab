"""Events on their way to the catalog."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from server.catalog.database.database import Database, sqlite_url
from server.catalog.database.events import EventTable
from server.catalog.events import Actor, Entry, Event, EventQuery
from server.catalog.trail import Trail


async def test_whoever_leaves_while_events_are_written_has_them_written_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = Database(sqlite_url(tmp_path))
    database.migrate()
    table, go_on = EventTable(database), threading.Event()
    append = table.append

    def slowly(entries: list[Entry]) -> None:
        assert go_on.wait(10)
        append(entries)

    monkeypatch.setattr(table, "append", slowly)
    trail = Trail(table)
    trail.record(Entry(actor=Actor("me"), event=Event("access"), time=1.0))
    for _ in range(2):
        asker = asyncio.create_task(trail.find(EventQuery(limit=10)))
        await asyncio.sleep(0.01)
        asker.cancel()
    go_on.set()
    await trail.close()
    assert len(table.find(EventQuery(limit=10))) == 1
    database.close()
