"""The tables of uploads and of their parts. Calls block; they raise CatalogUnavailableError."""

from __future__ import annotations

from typing import Any

import msgspec
from sqlalchemy import Connection, Row, delete, func, insert, select, update

from server.catalog.database.database import Database
from server.catalog.database.files import add_file
from server.catalog.database.tables import upload_parts, uploads
from server.catalog.files import DAY_SECONDS, FileRecord
from server.catalog.uploads import MAX_PENDING, MAX_UPLOAD_PARTS, PartRecord, UploadRecord, UploadStatus
from server.errors import InvalidRequestError, QueueFullError


class UploadTable:
    """All uploads, in the catalog of ``database``. What has ended is known for a day, and has no parts."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, record: UploadRecord) -> None:
        """Keep a new upload. Raises QueueFullError where its owner has too many that are pending."""
        pending = select(func.count()).where(
            uploads.c.owner == record.owner,
            uploads.c.status == UploadStatus.PENDING.value,
            uploads.c.expires > record.created,
        )
        with self._database.writing() as connection:
            if connection.execute(pending).scalar_one() >= MAX_PENDING:
                raise QueueFullError(f"{MAX_PENDING} uploads are pending already; complete or cancel some")
            connection.execute(insert(uploads).values(msgspec.structs.asdict(record)))

    def get(self, id: str) -> UploadRecord | None:
        """The upload of that id."""
        with self._database.reading() as connection:
            return _one(connection, id)

    def add_part(self, part: PartRecord) -> None:
        """Keep a part. Raises InvalidRequestError where its upload takes no more."""
        count = select(func.count()).where(upload_parts.c.upload == part.upload)
        with self._database.writing() as connection:
            _check_size(connection, _pending(connection, part.upload, part.created), part)
            if connection.execute(count).scalar_one() >= MAX_UPLOAD_PARTS:
                raise InvalidRequestError(
                    f"an upload may have {MAX_UPLOAD_PARTS} parts; send larger ones", param="upload_id"
                )
            connection.execute(insert(upload_parts).values(msgspec.structs.asdict(part)))

    def parts(self, id: str) -> list[PartRecord]:
        """The parts of an upload."""
        with self._database.reading() as connection:
            return _parts(connection, id)

    def complete(self, id: str, file: FileRecord) -> FileRecord:
        """Keep ``file``, which an upload has become; returns it with its number.

        Raises InvalidRequestError where the upload has ended meanwhile.
        """
        with self._database.writing() as connection:
            _pending(connection, id, file.created)
            _end(connection, id, UploadStatus.COMPLETED, file.id)
            return add_file(connection, file)

    def cancel(self, id: str, now: float) -> tuple[UploadRecord, list[PartRecord]]:
        """An upload is not wanted any more: it, and the parts that it had. Raises InvalidRequestError if it ended."""
        with self._database.writing() as connection:
            record = _pending(connection, id, now)
            gone = _parts(connection, id)
            _end(connection, id, UploadStatus.CANCELLED)
            return msgspec.structs.replace(record, status=UploadStatus.CANCELLED), gone

    def expire(self, now: float, limit: int = 100) -> list[PartRecord]:
        """Forget parts of uploads whose time is over, and what ended a day ago; returns some of the parts."""
        over = select(upload_parts).join(uploads, uploads.c.id == upload_parts.c.upload).where(uploads.c.expires <= now)
        with self._database.writing() as connection:
            gone = [_part(row) for row in connection.execute(over.limit(limit))]
            connection.execute(delete(upload_parts).where(upload_parts.c.id.in_([part.id for part in gone])))
            if len(gone) < limit:
                connection.execute(delete(uploads).where(uploads.c.expires <= now - DAY_SECONDS))
            return gone


def _one(connection: Connection, id: str, *, lock: bool = False) -> UploadRecord | None:
    found = select(uploads).where(uploads.c.id == id)
    row = connection.execute(found.with_for_update() if lock else found).first()
    return None if row is None else msgspec.convert(_values(row), UploadRecord)


def _pending(connection: Connection, id: str, now: float) -> UploadRecord:
    """The upload of that id, which was there, and which nobody else changes meanwhile."""
    record = _one(connection, id, lock=True)
    if record is None:
        raise InvalidRequestError(f"the upload {id} has expired; create another", param="upload_id")
    record.check_pending(now)
    return record


def _check_size(connection: Connection, record: UploadRecord, part: PartRecord) -> None:
    """Raise InvalidRequestError where the parts would hold more than their file; one that comes twice counts once."""
    others = select(upload_parts.c.sha256, func.max(upload_parts.c.nbytes).label("nbytes"))
    others = others.where(upload_parts.c.upload == record.id, upload_parts.c.sha256 != part.sha256)
    each = others.group_by(upload_parts.c.sha256).subquery()
    total = (connection.execute(select(func.sum(each.c.nbytes))).scalar_one() or 0) + part.nbytes
    if total > record.nbytes:
        raise InvalidRequestError(
            f"data: with this part the upload would hold {total} bytes, and it was created for {record.nbytes}; "
            "complete it with the parts that are there, or cancel it and create another",
            param="data",
            code="wrong_size",
        )


def _end(connection: Connection, id: str, status: UploadStatus, file: str = "") -> None:
    connection.execute(update(uploads).where(uploads.c.id == id).values(status=status.value, file=file))
    connection.execute(delete(upload_parts).where(upload_parts.c.upload == id))


def _parts(connection: Connection, id: str) -> list[PartRecord]:
    return [_part(row) for row in connection.execute(select(upload_parts).where(upload_parts.c.upload == id))]


def _part(row: Row[Any]) -> PartRecord:
    return msgspec.convert(_values(row), PartRecord)


def _values(row: Row[Any]) -> dict[str, Any]:
    return {str(name): value for name, value in row._mapping.items()}
