"""The files of a server: kept, listed, read and deleted, for their owners. Asyncio-confined."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from server.catalog.background import Background, Repeated
from server.catalog.database.asking import ask
from server.catalog.database.files import FileQuery, FileTable
from server.catalog.database.uploads import UploadTable
from server.catalog.files import DAY_SECONDS, FileRecord, Purpose, new_file_id
from server.catalog.store.blobs import BlobStore
from server.errors import BudgetError, InvalidRequestError, NotFoundError
from server.files.checks import check_file

BATCH_SECONDS = 30 * DAY_SECONDS  # that files of batches are kept, where their owners do not say otherwise
EXPIRE_SECONDS = 60.0
DROPPED_AT_ONCE = 100
T = TypeVar("T")


class UnknownFileError(NotFoundError):
    """No file of that id, or none of this owner's."""

    param = "file_id"
    code = "file_not_found"


class FileLibrary:
    """Files in ``table``, and their content in ``blobs``: at most ``max_bytes`` of all (0: what fits).

    The parts of ``uploads`` are kept and counted with them.
    """

    def __init__(self, table: FileTable, uploads: UploadTable, blobs: BlobStore, max_bytes: int) -> None:
        self._table = table
        self._uploads = uploads
        self._blobs = blobs
        self._max_bytes = max_bytes
        self._changing = asyncio.Lock()  # content is not deleted while a file of the same content comes
        self._background = Background()
        self._expiring = Repeated(self.expire, EXPIRE_SECONDS, "files that have expired stay")

    def start(self) -> None:
        """Delete what has expired from now on, in the running loop."""
        self._expiring.start()

    async def close(self) -> None:
        """End what is under way in good order."""
        await self._expiring.close()
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
        record = new_record(owner, filename, purpose, seconds)
        return await self.keep(path, lambda digest, nbytes: self._table.add(with_content(record, digest, nbytes)))

    async def keep(
        self, path: Path, write: Callable[[str, int], T], *, upload: str = "", parts: Sequence[str] = ()
    ) -> T:
        """Keep a copy of the content at ``path``, of which ``write``, told digest and size, keeps a record. It blocks.

        ``upload`` is one whose ``parts``, by their digests, go as it comes. Raises BudgetError, StoreError, and what
        ``write`` does.
        """
        return await self._background.to_the_end(self._keep(path, write, upload, parts))

    async def _keep(self, path: Path, write: Callable[[str, int], T], upload: str, parts: Sequence[str]) -> T:
        async with self._changing:
            await self.check_room((await asyncio.to_thread(path.stat)).st_size, upload)
            digest, nbytes = await asyncio.to_thread(self._blobs.put, path)
            try:
                kept = await ask(write, digest, nbytes)
            except InvalidRequestError:
                await self._drop([digest])
                raise
        await self._drop_some(parts)
        return kept

    async def check_room(self, nbytes: int, upload: str = "") -> None:
        """Raise BudgetError where there is no room for ``nbytes`` more, also without the parts of ``upload``."""
        if not self._max_bytes:
            return
        kept = await ask(self._table.total_bytes, upload)
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
        return await asyncio.to_thread(self.content, record.sha256)

    def content(self, digest: str) -> Path:
        """Where the content of that digest can be read. Blocks; raises StoreError."""
        return self._blobs.path(digest)

    async def delete(self, record: FileRecord) -> None:
        """Forget a file, and its content if no other has that."""

        def forgotten() -> tuple[None, list[str]]:
            self._table.delete(record)
            return None, [record.sha256]

        await self.forget(forgotten)

    async def forget(self, forgotten: Callable[[], tuple[T, Sequence[str]]]) -> T:
        """What ``forgotten``, which blocks, returns beside digests: their content is deleted where nothing has it."""
        return await self._background.to_the_end(self._forget(forgotten))

    async def _forget(self, forgotten: Callable[[], tuple[T, Sequence[str]]]) -> T:
        told, digests = await ask(forgotten)
        await self._drop_some(digests)
        return told

    async def _drop_some(self, digests: Sequence[str]) -> None:
        for start in range(0, len(digests), DROPPED_AT_ONCE):
            async with self._changing:
                await self._drop(digests[start : start + DROPPED_AT_ONCE])

    async def _drop(self, digests: Collection[str]) -> None:
        for digest in await ask(self._table.unused, digests):
            await asyncio.to_thread(self._blobs.remove, digest)

    async def expire(self) -> None:
        """Delete what has expired."""
        for record in await ask(self._table.expired, time.time()):
            await self.delete(record)
        await self.forget(lambda: (None, [part.sha256 for part in self._uploads.expire(time.time())]))


def new_record(owner: str, filename: str, purpose: Purpose, seconds: float | None) -> FileRecord:
    """A file that is made now, its content not yet known; kept for ``seconds``, or as long as its purpose says."""
    if seconds is None and purpose is Purpose.BATCH:
        seconds = BATCH_SECONDS
    now = time.time()
    return FileRecord(
        id=new_file_id(),
        owner=owner,
        filename=filename,
        purpose=purpose,
        nbytes=0,
        sha256="",
        created=now,
        expires=None if seconds is None else now + seconds,
    )


def with_content(record: FileRecord, digest: str, nbytes: int) -> FileRecord:
    """``record`` of a file whose content is known."""
    return msgspec.structs.replace(record, sha256=digest, nbytes=nbytes)
