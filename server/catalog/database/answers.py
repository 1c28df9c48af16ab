"""The table of answers. Calls block; they raise CatalogUnavailableError."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, delete, func, insert, select, update

from server.catalog.answers import AnswerKind, AnswerQuery, AnswerRecord
from server.catalog.database.database import Database
from server.catalog.database.tables import answers, servers

_PAGE = 256  # records looked at together, where not all of them are wanted
_IN = 500  # ids in one statement


class AnswerTable:
    """All answers, in the catalog of ``database``. Of more than ``most`` (0: any number) the oldest are forgotten."""

    def __init__(self, database: Database, most: int = 0) -> None:
        self._database = database
        self._most = most

    def save(
        self, records: Sequence[AnswerRecord], refreshed: Sequence[str] = (), expires: float | None = None
    ) -> None:
        """Keep ``records``, new or changed, and those of the ids ``refreshed`` until ``expires``.

        What was deleted meanwhile stays so: a changed record, and with a conversation its items.
        """
        with self._database.writing() as connection:
            for record in records:
                values = _values(record)
                if connection.execute(update(answers).where(answers.c.id == record.id).values(values)).rowcount:
                    continue
                if not record.number and (record.kind is not AnswerKind.ITEM or _is_there(connection, record.previous)):
                    connection.execute(insert(answers).values(values))
            for begin in range(0, len(refreshed), _IN):
                ids = refreshed[begin : begin + _IN]
                connection.execute(update(answers).where(answers.c.id.in_(ids)).values(expires=expires))
            if self._most:
                newest = connection.execute(select(func.max(answers.c.number))).scalar_one() or 0
                connection.execute(delete(answers).where(answers.c.number <= newest - self._most))

    def get(self, id: str, now: float) -> AnswerRecord | None:
        """The answer of that id, if its time is not over."""
        with self._database.reading() as connection:
            return _get(connection, id, now)

    def chain(self, id: str, now: float, most: int) -> list[AnswerRecord]:
        """The answer of that id and those before it, from the newest on; ``most`` at most.

        One whose ``previous`` is not told after it is not there any more.
        """
        found: list[AnswerRecord] = []
        with self._database.reading() as connection:
            while id and len(found) < most and (record := _get(connection, id, now)) is not None:
                found.append(record)
                id = record.previous
        return found

    def find(self, query: AnswerQuery) -> list[AnswerRecord]:
        """What is asked for, newest first unless ``ascending``."""
        found: list[AnswerRecord] = []
        with self._database.reading() as connection:
            while len(found) < query.limit and (page := _page(connection, query)):
                found += [record for record in page if _has(record, query.metadata)]
                query = msgspec.structs.replace(query, after=page[-1].number)
        return found[: query.limit]

    def take_turn(self, id: str, server: str) -> bool:
        """Let ``server`` answer in a conversation; False while another server that runs does."""
        running = select(servers.c.id).where(servers.c.id != server)
        taken = update(answers).where(answers.c.id == id, answers.c.turn.not_in(running)).values(turn=server)
        with self._database.writing() as connection:
            return bool(connection.execute(taken).rowcount)

    def end_turn(self, id: str, server: str) -> None:
        """``server`` answers there no more."""
        with self._database.writing() as connection:
            connection.execute(update(answers).where(answers.c.id == id, answers.c.turn == server).values(turn=""))

    def delete(self, id: str) -> None:
        """Forget an answer; with a conversation, its items."""
        item = (answers.c.previous == id) & (answers.c.kind == AnswerKind.ITEM.value)
        with self._database.writing() as connection:
            connection.execute(delete(answers).where((answers.c.id == id) | item))

    def delete_expired(self, now: float) -> None:
        """Forget those whose time is over."""
        with self._database.writing() as connection:
            connection.execute(delete(answers).where(answers.c.expires <= now))


def _is_there(connection: Connection, id: str) -> bool:
    return connection.execute(select(answers.c.number).where(answers.c.id == id)).first() is not None


def _page(connection: Connection, query: AnswerQuery) -> list[AnswerRecord]:
    number = answers.c.number
    found = select(answers).where(answers.c.kind == query.kind.value, answers.c.owner == query.owner)
    found = found.where(answers.c.expires.is_(None) | (answers.c.expires > query.now))
    if query.model is not None:
        found = found.where(answers.c.model == query.model)
    if query.previous is not None:
        found = found.where(answers.c.previous == query.previous)
    if query.after is not None:
        found = found.where(number > query.after if query.ascending else number < query.after)
    if query.until is not None:
        found = found.where(number <= query.until)
    limit = _PAGE if query.metadata else query.limit
    rows = connection.execute(found.order_by(number if query.ascending else number.desc()).limit(limit))
    return [_record(row) for row in rows]


def _has(record: AnswerRecord, metadata: dict[str, str]) -> bool:
    return not metadata or metadata.items() <= msgspec.json.decode(record.metadata, type=dict[str, str]).items()


def _get(connection: Connection, id: str, now: float) -> AnswerRecord | None:
    row = connection.execute(select(answers).where(answers.c.id == id)).first()
    record = None if row is None else _record(row)
    return None if record is None or (record.expires is not None and record.expires <= now) else record


def _values(record: AnswerRecord) -> dict[str, Any]:
    values = msgspec.structs.asdict(record)
    del values["number"]
    return values | {"kind": record.kind.value}


def _record(row: Row[Any]) -> AnswerRecord:
    return msgspec.convert({str(name): value for name, value in row._mapping.items()}, AnswerRecord)
