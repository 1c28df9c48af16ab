"""The tables of jobs and of what happens in them. Calls block; they raise CatalogUnavailableError."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, func, insert, select, update

from server.catalog.database.database import Database
from server.catalog.database.events import append
from server.catalog.database.tables import job_events, jobs
from server.catalog.events import Entry
from server.catalog.jobs import JobEvent, JobQuery, JobRow

Mutate = Callable[[JobRow], JobRow]


class JobTable:
    """All jobs, in the catalog of ``database``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, row: JobRow, told: Sequence[JobEvent] = (), entries: Iterable[Entry] = ()) -> JobRow:
        """Keep a new job; returns it with its number."""
        with self._database.writing() as connection:
            values = msgspec.structs.asdict(row)
            del values["number"]
            number = connection.execute(insert(jobs).values(values).returning(jobs.c.number)).scalar_one()
            _tell(connection, row.id, told)
            append(connection, entries)
            return msgspec.structs.replace(row, number=int(number))

    def get(self, id: str) -> JobRow | None:
        """The job of that id."""
        with self._database.reading() as connection:
            return _one(connection, id)

    def find(self, query: JobQuery) -> list[JobRow]:
        """What is asked for, newest first."""
        found = select(jobs).where(jobs.c.kind == query.kind)
        if query.owner is not None:
            found = found.where(jobs.c.owner == query.owner)
        if query.statuses:
            found = found.where(jobs.c.status.in_(query.statuses))
        if query.after is not None:
            found = found.where(jobs.c.number < query.after)
        with self._database.reading() as connection:
            return [_row(row) for row in connection.execute(found.order_by(jobs.c.number.desc()).limit(query.limit))]

    def waiting(self, kind: str, statuses: Collection[str], place: str) -> list[JobRow]:
        """Jobs in one of ``statuses`` that ``place`` may do, oldest first."""
        found = select(jobs).where(jobs.c.kind == kind, jobs.c.status.in_(statuses), jobs.c.place.in_(("", place)))
        with self._database.reading() as connection:
            return [_row(row) for row in connection.execute(found.order_by(jobs.c.number).limit(100))]

    def counts(self, kind: str, owner: str | None = None) -> dict[str, int]:
        """How many jobs of a kind are in each status, of one owner or of all."""
        counted = select(jobs.c.status, func.count()).where(jobs.c.kind == kind).group_by(jobs.c.status)
        if owner is not None:
            counted = counted.where(jobs.c.owner == owner)
        with self._database.reading() as connection:
            return {row.status: row[1] for row in connection.execute(counted)}

    def oldest(self, kind: str, statuses: Collection[str]) -> float | None:
        """When the oldest job of a kind in one of ``statuses`` was made, in Unix seconds; None where there is none."""
        found = select(func.min(jobs.c.created)).where(jobs.c.kind == kind, jobs.c.status.in_(statuses))
        with self._database.reading() as connection:
            moment: float | None = connection.execute(found).scalar_one()
            return moment

    def change(
        self, id: str, mutate: Mutate, told: Sequence[JobEvent] = (), entries: Iterable[Entry] = ()
    ) -> JobRow | None:
        """Let a job be what ``mutate`` makes of it, which nobody else changes meanwhile; None where there is none.

        What ``mutate`` raises undoes everything.
        """
        with self._database.writing() as connection:
            row = _one(connection, id, lock=True)
            if row is None:
                return None
            changed = mutate(row)
            if changed != row:
                values = {name: getattr(changed, name) for name in ("status", "place", "wish", "record")}
                connection.execute(update(jobs).where(jobs.c.id == id).values(values))
            _tell(connection, id, told)
            append(connection, entries)
            return changed

    def tell(self, id: str, told: Sequence[JobEvent]) -> None:
        """Something happened in a job."""
        with self._database.writing() as connection:
            _tell(connection, id, told)

    def events(self, id: str, *, after: int | None = None, limit: int = 100, ascending: bool = False) -> list[JobEvent]:
        """What happened in a job, newest first unless ``ascending``; ``after``: the number of the last one seen."""
        number = job_events.c.number
        found = select(job_events).where(job_events.c.job == id)
        if after is not None:
            found = found.where(number > after if ascending else number < after)
        found = found.order_by(number if ascending else number.desc()).limit(limit)
        with self._database.reading() as connection:
            return [_event(row) for row in connection.execute(found)]


def _one(connection: Connection, id: str, *, lock: bool = False) -> JobRow | None:
    found = select(jobs).where(jobs.c.id == id)
    row = connection.execute(found.with_for_update() if lock else found).first()
    return None if row is None else _row(row)


def _tell(connection: Connection, id: str, told: Sequence[JobEvent]) -> None:
    rows = [
        {
            "job": id,
            "time": event.time,
            "level": event.level,
            "type": event.type,
            "message": event.message,
            "data": msgspec.json.encode(event.data).decode(),
        }
        for event in told
    ]
    if rows:
        connection.execute(insert(job_events), rows)


def _row(row: Row[Any]) -> JobRow:
    return msgspec.convert({str(name): value for name, value in row._mapping.items()}, JobRow)


def _event(row: Row[Any]) -> JobEvent:
    return JobEvent(
        message=row.message,
        level=row.level,
        type=row.type,
        data=msgspec.json.decode(row.data),
        time=row.time,
        number=row.number,
    )
