"""The files of a server: kept, listed, read and deleted, for their owners. Asyncio-confined."""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path

import msgspec

from server.catalog.background import Background
from server.catalog.database.asking import ask
from server.catalog.database.files import FileQuery, FileTable
from server.catalog.files import DAY_SECONDS, FileRecord, Purpose, new_file_id
from server.catalog.store.blobs import BlobStore
from server.errors import BudgetError, NotFoundError, ServerError
from server.files.checks import check_file

logger = logging.getLogger(__name__)
BATCH_SECONDS = 30 * DAY_SECONDS  # that files of batches are kept, where their owners do not say otherwise
EXPIRE_SECONDS = 60.0


class UnknownFileError(NotFoundError):
    """No file of that id, or none of this owner's."""

    param = "file_id"
    code = "file_not_found"


class FileLibrary:
    """Files in ``table``, and their content in ``blobs``: at most ``max_bytes`` of all (0: what fits)."""

    def __init__(self, table: FileTable, blobs: BlobStore, max_bytes: int) -> None:
        self._table = table
        self._blobs = blobs
        self._max_bytes = max_bytes
        self._changing = asyncio.Lock()  # content is not deleted while a file of the same content comes
        self._background = Background()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Delete what has expired from now on, in the running loop."""
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """End what is under way in good order."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await self._background.settle()

    async def add(
        self,
        path: Path,
        *,
        owner: str,
        filename: str,
        purpose: Purpose,
        seconds: float | None = None,
        check: bool = True,
    ) -> FileRecord:
        """Keep a copy of the file at ``path`` for ``owner``, and for ``seconds`` if those are given.

        Raises InvalidRequestError for content that is no use for ``purpose``, BudgetError, StoreError.
        """
        if check:
            await asyncio.to_thread(check_file, path, purpose)
        if seconds is None and purpose is Purpose.BATCH:
            seconds = BATCH_SECONDS
        now = time.time()
        record = FileRecord(
            id=new_file_id(),
            owner=owner,
            filename=filename,
            purpose=purpose,
            nbytes=0,
            sha256="",
            created=now,
            expires=None if seconds is None else now + seconds,
        )
        return await self._background.to_the_end(self._keep(path, record))

    async def _keep(self, path: Path, record: FileRecord) -> FileRecord:
        async with self._changing:
            await self._check_room((await asyncio.to_thread(path.stat)).st_size)
            digest, nbytes = await asyncio.to_thread(self._blobs.put, path)
            return await ask(self._table.add, msgspec.structs.replace(record, sha256=digest, nbytes=nbytes))

    async def _check_room(self, nbytes: int) -> None:
        if not self._max_bytes:
            return
        kept = await ask(self._table.total_bytes)
        if kept + nbytes > self._max_bytes:
            raise BudgetError(
                f"the file weighs {nbytes / 1e6:.1f} MB, and those kept {kept / 1e6:.1f} of "
                f"{self._max_bytes / 1e6:.1f} MB (--max-files-gb). Delete files (DELETE /v1/files/ID), or raise it",
                code="storage_budget_exceeded",
            )

    async def get(self, id: str, owner: str | None) -> FileRecord:
        """The file of that id, if it is ``owner``'s (None: anybody's). Raises UnknownFileError."""
        record = await ask(self._table.get, id)
        if record is None or owner not in (None, record.owner) or record.has_expired(time.time()):
            raise UnknownFileError(f"there is no file {id[:60]!a}; GET /v1/files lists yours")
        return record

    async def find(
        self, owner: str | None, *, purpose: Purpose | None, after: str | None, ascending: bool, limit: int
    ) -> list[FileRecord]:
        """Files of ``owner`` (None: all). ``after`` is the id of the last one that was seen."""
        number = (await self.get(after, owner)).number if after is not None else None
        query = FileQuery(owner=owner, now=time.time(), purpose=purpose, after=number, ascending=ascending, limit=limit)
        return await ask(self._table.find, query)

    async def path(self, record: FileRecord) -> Path:
        """Where its content can be read. Raises StoreError."""
        return await asyncio.to_thread(self._blobs.path, record.sha256)

    async def delete(self, record: FileRecord) -> None:
        """Forget a file, and its content if no other has that."""
        await self._background.to_the_end(self._delete(record))

    async def _delete(self, record: FileRecord) -> None:
        async with self._changing:
            if await ask(self._table.delete, record):
                await asyncio.to_thread(self._blobs.remove, record.sha256)

    async def expire(self) -> None:
        """Delete what has expired."""
        for record in await ask(self._table.expired, time.time()):
            await self.delete(record)

    async def _run(self) -> None:
        while True:
            try:
                await self.expire()
            except ServerError as error:
                logger.debug("files that have expired stay: %s", error)
            except Exception:
                logger.exception("files that have expired stay")
            await asyncio.sleep(EXPIRE_SECONDS)
