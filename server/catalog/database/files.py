"""The table of files. Calls block; they raise CatalogUnavailableError."""

from __future__ import annotations

from typing import Any

import msgspec
from sqlalchemy import Row, delete, func, insert, select

from server.catalog.database.database import Database
from server.catalog.database.tables import files
from server.catalog.files import FileRecord, Purpose


class FileQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Which files are asked for. ``owner`` None: anybody's. ``after`` is the number of the last one that was seen."""

    owner: str | None
    now: float
    purpose: Purpose | None = None
    after: int | None = None
    ascending: bool = False
    limit: int = 100


class FileTable:
    """All files, in the catalog of ``database``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, record: FileRecord) -> FileRecord:
        """Keep ``record``; returns it with its number."""
        with self._database.writing() as connection:
            values = msgspec.structs.asdict(record)
            del values["number"]
            added = connection.execute(insert(files).values(values).returning(files.c.number))
            return msgspec.structs.replace(record, number=int(added.scalar_one()))

    def get(self, id: str) -> FileRecord | None:
        """The file of that id."""
        with self._database.reading() as connection:
            row = connection.execute(select(files).where(files.c.id == id)).first()
            return None if row is None else _record(row)

    def find(self, query: FileQuery) -> list[FileRecord]:
        """What is asked for, newest first unless ``ascending``."""
        number = files.c.number
        found = select(files).where(files.c.expires.is_(None) | (files.c.expires > query.now))
        if query.owner is not None:
            found = found.where(files.c.owner == query.owner)
        if query.purpose is not None:
            found = found.where(files.c.purpose == query.purpose.value)
        if query.after is not None:
            found = found.where(number > query.after if query.ascending else number < query.after)
        found = found.order_by(number if query.ascending else number.desc()).limit(query.limit)
        with self._database.reading() as connection:
            return [_record(row) for row in connection.execute(found)]

    def expired(self, now: float, limit: int = 100) -> list[FileRecord]:
        """Some of the files whose time is over."""
        with self._database.reading() as connection:
            return [
                _record(row) for row in connection.execute(select(files).where(files.c.expires <= now).limit(limit))
            ]

    def delete(self, record: FileRecord) -> bool:
        """Forget a file; whether no other has its content."""
        with self._database.writing() as connection:
            connection.execute(delete(files).where(files.c.id == record.id))
            others = select(func.count()).where(files.c.sha256 == record.sha256)
            return not connection.execute(others).scalar_one()

    def total_bytes(self) -> int:
        """What all of them weigh, equal content counted once."""
        weights = select(func.max(files.c.nbytes).label("nbytes")).group_by(files.c.sha256).subquery()
        with self._database.reading() as connection:
            return int(connection.execute(select(func.coalesce(func.sum(weights.c.nbytes), 0))).scalar_one())


def _record(row: Row[Any]) -> FileRecord:
    return msgspec.convert({str(name): value for name, value in row._mapping.items()}, FileRecord)
