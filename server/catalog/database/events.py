"""The table of events. Calls block; they raise CatalogUnavailableError."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Connection, Row, and_, delete, insert, not_, or_, select

from server.catalog.database.database import Database
from server.catalog.database.tables import MAX_ADDRESS, MAX_NAME, MAX_REQUEST_ID, events
from server.catalog.events import JOB_ACTIONS, KEY_ACTIONS, Actor, Entry, Event, EventQuery
from server.catalog.keys import as_expression, without_keys


def append(connection: Connection, entries: Iterable[Entry]) -> None:
    """Add ``entries``: in the transaction of the change that they tell of, if there is one."""
    if rows := [_row(entry) for entry in entries]:
        connection.execute(insert(events), rows)


class EventTable:
    """All events, in the catalog of ``database``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def append(self, entries: Iterable[Entry]) -> None:
        """Add entries that tell of no change, such as refusals."""
        with self._database.writing() as connection:
            append(connection, entries)

    def find(self, query: EventQuery) -> list[Entry]:
        """What is asked for, newest first."""
        statement = (
            select(events)
            .where(*_conditions(query))
            .order_by(events.c.time.desc(), events.c.id.desc())
            .limit(query.limit)
        )
        with self._database.reading() as connection:
            return [_entry(row) for row in connection.execute(statement)]

    def delete_before(self, time: float) -> None:
        """Forget what is older than ``time``."""
        with self._database.writing() as connection:
            connection.execute(delete(events).where(events.c.time < time))


def _conditions(query: EventQuery) -> list[ColumnElement[bool]]:
    equal = {"name": query.name, "actor": query.actor, "action": query.action, "outcome": query.outcome}
    found: list[ColumnElement[bool]] = [events.c[field] == value for field, value in equal.items() if value is not None]
    if query.since is not None:
        found.append(events.c.time >= query.since)
    if query.until is not None:
        found.append(events.c.time < query.until)
    if query.before is not None:
        time, id = query.before
        found.append(or_(events.c.time < time, and_(events.c.time == time, events.c.id < id)))
    if query.adapters is not None:
        found.append(events.c.name != "")
        found.append(events.c.name.regexp_match(f"^(?:{as_expression(query.adapters)})$"))
        found += [not_(events.c.action.startswith(begin, autoescape=True)) for begin in (KEY_ACTIONS, *JOB_ACTIONS)]
    return found


def _row(entry: Entry) -> dict[str, Any]:
    actor, event = entry.actor, entry.event
    detail = {name: _storable(value) for name, value in event.detail.items()}
    return {
        "time": entry.time,
        "actor": actor.name,
        "address": _storable(actor.address)[:MAX_ADDRESS],
        "request_id": _storable(actor.request_id)[:MAX_REQUEST_ID],
        "action": event.action,
        "base": entry.base,
        "name": _storable(entry.name)[:MAX_NAME],
        "version": event.version,
        "outcome": entry.outcome,
        "detail": msgspec.json.encode(detail).decode(),
    }


def _storable(value: Any) -> Any:
    """``value``; of a text, which clients may have sent, what every database takes, and without keys."""
    if not isinstance(value, str):
        return value
    return without_keys(value.encode("utf-8", "replace").decode().replace("\0", "?"))


def _entry(row: Row[Any]) -> Entry:
    return Entry(
        id=row.id,
        time=row.time,
        actor=Actor(row.actor, row.address, row.request_id),
        event=Event(row.action, row.version, msgspec.json.decode(row.detail)),
        name=row.name,
        base=row.base,
        outcome=row.outcome,
    )
