"""Files that come in parts: what stays of their parts."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from server.catalog.database.database import Database, sqlite_url
from server.catalog.database.files import FileTable
from server.catalog.database.uploads import UploadTable
from server.catalog.files import FileRecord, Purpose
from server.catalog.store.blobs import BlobStore
from server.files.library import FileLibrary
from server.files.uploads import Uploads


async def test_parts_go_also_when_nobody_waits_for_their_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database = Database(sqlite_url(tmp_path))
    database.migrate()
    table, begun, left = UploadTable(database), asyncio.Event(), threading.Event()
    library = FileLibrary(FileTable(database), table, BlobStore(tmp_path / "files"), 0)
    uploads = Uploads(table, library, 1000)
    upload = await uploads.create(owner="me", filename="f", purpose=Purpose.USER_DATA, nbytes=6, seconds=None)
    parts = []
    for content in (b"one", b"two"):
        (tmp_path / "part").write_bytes(content)
        parts.append((await uploads.add(upload, tmp_path / "part")).id)
    loop, complete = asyncio.get_running_loop(), table.complete

    def complete_late(id: str, file: FileRecord) -> FileRecord:
        loop.call_soon_threadsafe(begun.set)
        assert left.wait(5)
        return complete(id, file)

    monkeypatch.setattr(table, "complete", complete_late)
    asking = asyncio.create_task(uploads.complete(upload, parts, None, tmp_path / "joined"))
    await begun.wait()
    asking.cancel()
    left.set()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await library.close()
    assert [path.read_bytes() for path in (tmp_path / "files").iterdir()] == [b"onetwo"]
    database.close()
