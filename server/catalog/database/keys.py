"""The table of API keys. Calls block; they raise CatalogUnavailableError."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import msgspec
from sqlalchemy import Connection, delete, func, insert, inspect, or_, select, update

from server.catalog.database.database import Database, count_up
from server.catalog.database.events import append
from server.catalog.database.tables import keys
from server.catalog.events import Entry
from server.catalog.keys import KeyRecord


@dataclass(frozen=True)
class KeyChange:
    """What a change comes to: records to save, ids to delete, and what tells of it; None: nothing is to be done."""

    entry: Entry | None
    save: tuple[KeyRecord, ...] = ()
    delete: tuple[str, ...] = ()


@dataclass(frozen=True)
class StoredKeys:
    """All keys of a catalog, and when each was used last. ``mark`` differs whenever a key does."""

    mark: tuple[int, int] = (0, 0)
    records: dict[str, KeyRecord] = field(default_factory=dict)
    last_used: dict[str, float] = field(default_factory=dict)


class KeyTable:
    """All keys, in the catalog of ``database``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def read(self) -> StoredKeys:
        """All that is stored."""
        with self._database.reading() as connection:
            return _read(connection)

    def mark(self) -> tuple[int, int]:
        """``StoredKeys.mark`` of now, without reading the keys."""
        with self._database.reading() as connection:
            return _mark(connection)

    def change(self, work: Callable[[Mapping[str, KeyRecord]], KeyChange]) -> StoredKeys:
        """Do what ``work`` makes of all records, which nobody else changes meanwhile; returns what is stored then.

        What ``work`` raises undoes everything.
        """
        with self._database.writing() as connection:
            revision = count_up(connection)
            change = work(_read(connection).records)
            for record in change.save:
                _save(connection, record, revision)
            if change.delete:
                connection.execute(delete(keys).where(keys.c.id.in_(change.delete)))
            if change.entry is not None:
                append(connection, [change.entry])
            return _read(connection)

    def note_used(self, times: Mapping[str, float]) -> None:
        """Remember when keys were used last, unless a later time is known. It is no change that others have to see."""
        with self._database.writing() as connection:
            for id, last in sorted(times.items()):
                earlier = or_(keys.c.last_used.is_(None), keys.c.last_used < last)
                connection.execute(update(keys).where(keys.c.id == id, earlier).values(last_used=last))


def has_keys(database: Database) -> bool:
    """Whether there is any key, be the tables there or not."""
    with database.reading() as connection:
        if not inspect(connection).has_table(keys.name):
            return False
        return connection.execute(select(keys.c.id).limit(1)).first() is not None


def _mark(connection: Connection) -> tuple[int, int]:
    count, revision = connection.execute(select(func.count(), func.max(keys.c.revision))).one()
    return count, revision or 0


def _read(connection: Connection) -> StoredKeys:
    rows = connection.execute(select(keys.c.id, keys.c.record, keys.c.last_used)).all()
    records = {id: msgspec.json.decode(record, type=KeyRecord) for id, record, _ in rows}
    return StoredKeys(_mark(connection), records, {id: last for id, _, last in rows if last is not None})


def _save(connection: Connection, record: KeyRecord, revision: int) -> None:
    values = {"revision": revision, "record": msgspec.json.encode(record).decode()}
    if not connection.execute(update(keys).where(keys.c.id == record.id).values(values)).rowcount:
        connection.execute(insert(keys).values(id=record.id, **values))
