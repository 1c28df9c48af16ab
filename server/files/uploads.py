"""Files that come in parts: begun, filled part by part, and put together to a file as any other. Asyncio-confined."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from server.catalog.database.asking import ask
from server.catalog.database.uploads import UploadTable
from server.catalog.files import FileRecord, Purpose
from server.catalog.store import disk_errors
from server.catalog.uploads import UPLOAD_SECONDS, PartRecord, UploadRecord, new_part_id, new_upload_id
from server.errors import InvalidRequestError, NotFoundError, StoreError
from server.files.checks import check_file
from server.files.library import FileLibrary, new_record, with_content

COPY_BYTES = 1 << 20
_digest = hashlib.md5  # what clients of this API know; it shows what went wrong on the way, and nobody trusts it


class UnknownUploadError(NotFoundError):
    """No upload of that id, or none of this owner's."""

    param = "upload_id"
    code = "upload_not_found"


class Uploads:
    """Uploads in ``table``, their parts and what becomes of them in ``library``: at most ``max_bytes`` each."""

    def __init__(self, table: UploadTable, library: FileLibrary, max_bytes: int) -> None:
        self._table = table
        self._library = library
        self._max_bytes = max_bytes

    async def create(
        self, *, owner: str, filename: str, purpose: Purpose, nbytes: int, seconds: float | None
    ) -> UploadRecord:
        """Begin a file of ``nbytes``, to be kept for ``seconds``. Raises InvalidRequestError, BudgetError."""
        if nbytes > self._max_bytes:
            raise InvalidRequestError(
                f"bytes: a file may have {self._max_bytes} (--max-file-mb), in one piece or in parts", param="bytes"
            )
        await self._library.check_room(nbytes)
        now = time.time()
        record = UploadRecord(
            id=new_upload_id(),
            owner=owner,
            filename=filename,
            purpose=purpose,
            nbytes=nbytes,
            created=now,
            expires=now + UPLOAD_SECONDS,
            seconds=seconds,
        )
        await ask(self._table.add, record)
        return record

    async def pending(self, id: str, owner: str | None) -> UploadRecord:
        """The upload of that id, if it is ``owner``'s (None: anybody's). Raises UnknownUploadError.

        Raises InvalidRequestError where it has ended.
        """
        record = await ask(self._table.get, id)
        if record is None or owner not in (None, record.owner):
            raise UnknownUploadError(f"there is no upload {id[:60]!a}; POST /v1/uploads begins one")
        record.check_pending(time.time())
        return record

    async def add(self, upload: UploadRecord, path: Path) -> PartRecord:
        """Keep the file at ``path`` as a part. Raises InvalidRequestError, BudgetError, StoreError."""
        nbytes = (await asyncio.to_thread(path.stat)).st_size
        if not 0 < nbytes <= upload.nbytes:
            whole = f"it holds {nbytes} bytes, and the whole file is to have {upload.nbytes}"
            said = whole if nbytes else "it is empty"
            raise InvalidRequestError(f"data: {said}", param="data")

        def write(digest: str, nbytes: int) -> PartRecord:
            part = PartRecord(id=new_part_id(), upload=upload.id, nbytes=nbytes, sha256=digest, created=time.time())
            self._table.add_part(part)
            return part

        return await self._library.keep(path, write)

    async def complete(
        self, upload: UploadRecord, ids: Sequence[str], md5: str | None, place: Path
    ) -> tuple[UploadRecord, FileRecord]:
        """Put the parts of ``ids`` together, in that order, in the file ``place``, and keep that as a file.

        Raises InvalidRequestError where parts, size, ``md5`` (in hex) or content are wrong: it stays pending then.
        """
        parts = await ask(self._table.parts, upload.id)
        chosen = _chosen(upload, parts, ids)
        try:
            found = await asyncio.to_thread(self._join, chosen, place)
        except StoreError:
            await self.pending(upload.id, None)  # which says so where it was ended meanwhile
            raise
        if md5 is not None and md5.lower() != found:
            raise InvalidRequestError(f"md5: that of the parts in this order is {found}", param="md5", code="wrong_md5")
        await asyncio.to_thread(check_file, place, upload.purpose)
        record = new_record(upload.owner, upload.filename, upload.purpose, upload.seconds)
        complete = partial(self._table.complete, upload.id)
        file = await self._library.keep(
            place,
            lambda digest, nbytes: complete(with_content(record, digest, nbytes)),
            upload=upload.id,
            parts=[part.sha256 for part in parts],
        )
        completed = await ask(self._table.get, upload.id)
        return completed or upload, file

    async def cancel(self, upload: UploadRecord) -> UploadRecord:
        """Forget the parts of an upload. Raises InvalidRequestError where it ended meanwhile."""

        def cancelled() -> tuple[UploadRecord, list[str]]:
            record, parts = self._table.cancel(upload.id, time.time())
            return record, [part.sha256 for part in parts]

        return await self._library.forget(cancelled)

    @disk_errors()
    def _join(self, parts: Sequence[PartRecord], place: Path) -> str:
        """Write the content of ``parts`` to the file ``place``; returns its MD5 digest in hex. Raises StoreError."""
        digest = _digest(usedforsecurity=False)
        with place.open("wb") as joined:
            for part in parts:
                with self._library.content(part.sha256).open("rb") as file:
                    while chunk := file.read(COPY_BYTES):
                        digest.update(chunk)
                        joined.write(chunk)
        return digest.hexdigest()


def _chosen(upload: UploadRecord, parts: Sequence[PartRecord], ids: Sequence[str]) -> list[PartRecord]:
    """The parts of ``ids``, in that order. Raises InvalidRequestError where they do not make up the file."""
    known = {part.id: part for part in parts}
    for id, count in Counter(ids).items():
        if id not in known:
            raise InvalidRequestError(f"part_ids: the upload has no part {id[:60]!a}", param="part_ids")
        if count > 1:
            raise InvalidRequestError(f"part_ids: the part {id} stands there {count} times", param="part_ids")
    chosen = [known[id] for id in ids]
    total = sum(part.nbytes for part in chosen)
    if total != upload.nbytes:
        raise InvalidRequestError(
            f"part_ids: these parts have {total} bytes, and the upload was created for {upload.nbytes}",
            param="part_ids",
            code="wrong_size",
        )
    return chosen
