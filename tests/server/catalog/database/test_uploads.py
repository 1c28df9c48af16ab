"""Uploads and their parts in the catalog, and whose content is kept."""

from __future__ import annotations

import time

import msgspec
import pytest

from server.catalog.database.database import Database
from server.catalog.database.files import FileTable
from server.catalog.database.uploads import UploadTable
from server.catalog.files import DAY_SECONDS, FileRecord, Purpose
from server.catalog.uploads import UPLOAD_SECONDS, PartRecord, UploadRecord, UploadStatus
from server.errors import InvalidRequestError

NOW = time.time()


def upload(id: str, **fields: object) -> UploadRecord:
    made = UploadRecord(
        id=id, owner="me", filename="f", purpose=Purpose.BATCH, nbytes=9, created=NOW, expires=NOW + UPLOAD_SECONDS
    )
    return msgspec.structs.replace(made, **fields)


def part(id: str, of: str, digest: str, nbytes: int = 4) -> PartRecord:
    return PartRecord(id=id, upload=of, nbytes=nbytes, sha256=digest * 64, created=NOW)


def test_parts_are_kept_until_their_upload_ends(database_url: str) -> None:
    database = Database(database_url)
    database.migrate()
    uploads, files = UploadTable(database), FileTable(database)
    for id in ("u1", "u2", "u3"):
        uploads.add(upload(id))
    assert uploads.get("u1") == upload("u1")
    assert uploads.get("u9") is None
    for one in (part("p1", "u1", "a"), part("p2", "u1", "b", 5), part("p3", "u2", "a"), part("p4", "u3", "c", 7)):
        uploads.add_part(one)
    assert {one.id for one in uploads.parts("u1")} == {"p1", "p2"}
    assert files.total_bytes() == 16  # equal content once
    assert files.total_bytes(without="u1") == 11
    assert files.unused(["a" * 64, "d" * 64]) == {"d" * 64}
    record = FileRecord(
        id="file-1", owner="me", filename="f", purpose=Purpose.BATCH, nbytes=9, sha256="e" * 64, created=NOW
    )
    assert uploads.complete("u1", record).number > 0
    assert files.get("file-1") is not None
    ended = uploads.get("u1")
    assert ended is not None
    assert (ended.status, ended.file, uploads.parts("u1")) == (UploadStatus.COMPLETED, "file-1", [])
    assert files.unused(["a" * 64, "b" * 64]) == {"b" * 64}
    cancelled, gone = uploads.cancel("u2", NOW)
    assert (cancelled.status, [one.id for one in gone]) == (UploadStatus.CANCELLED, ["p3"])
    for work in (
        lambda: uploads.add_part(part("p5", "u2", "a")),
        lambda: uploads.complete("u1", msgspec.structs.replace(record, id="file-2")),
        lambda: uploads.cancel("u9", NOW),
    ):
        with pytest.raises(InvalidRequestError, match="the upload u"):
            work()
    assert files.get("file-2") is None
    later = NOW + UPLOAD_SECONDS + 1
    assert [one.id for one in uploads.expire(later)] == ["p4"]
    assert uploads.expire(later) == []
    assert uploads.get("u3") is not None
    uploads.expire(later + DAY_SECONDS)
    assert uploads.get("u3") is None
    database.close()
