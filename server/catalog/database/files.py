"""The table of files, and what content is kept, theirs and that of parts of uploads.

Calls block; they raise CatalogUnavailableError.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, delete, func, insert, select, union_all

from server.catalog.database.database import Database
from server.catalog.database.tables import files, upload_parts
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
            return add_file(connection, record)

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

    def delete(self, record: FileRecord) -> None:
        """Forget a file."""
        with self._database.writing() as connection:
            connection.execute(delete(files).where(files.c.id == record.id))

    def unused(self, digests: Collection[str]) -> set[str]:
        """Those of ``digests`` whose content is no file's and no part's."""
        used: set[str] = set()
        with self._database.reading() as connection:
            for table in (files, upload_parts):
                used.update(connection.execute(select(table.c.sha256).where(table.c.sha256.in_(digests))).scalars())
        return set(digests) - used

    def total_bytes(self, without: str = "") -> int:
        """What all files and parts weigh, but for parts of the upload ``without``; equal content is counted once."""
        parts = select(upload_parts.c.sha256, upload_parts.c.nbytes).where(upload_parts.c.upload != without)
        kept = union_all(select(files.c.sha256, files.c.nbytes), parts).subquery()
        weights = select(func.max(kept.c.nbytes).label("nbytes")).group_by(kept.c.sha256).subquery()
        with self._database.reading() as connection:
            return int(connection.execute(select(func.coalesce(func.sum(weights.c.nbytes), 0))).scalar_one())


def add_file(connection: Connection, record: FileRecord) -> FileRecord:
    """Keep ``record`` in the transaction of ``connection``; returns it with its number."""
    values = msgspec.structs.asdict(record)
    del values["number"]
    added = connection.execute(insert(files).values(values).returning(files.c.number))
    return msgspec.structs.replace(record, number=int(added.scalar_one()))


def _record(row: Row[Any]) -> FileRecord:
    return msgspec.convert({str(name): value for name, value in row._mapping.items()}, FileRecord)
