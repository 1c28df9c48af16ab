"""Files that come in parts: what is known of an upload until its parts are put together, and of each part."""

from __future__ import annotations

import secrets
from enum import StrEnum
from typing import Any

import msgspec

from server.catalog.files import FileRecord, Purpose, file_data
from server.errors import InvalidRequestError

UPLOAD_SECONDS = 3600.0  # in which all parts have to come
MAX_UPLOAD_PARTS = 10_000
MAX_PART_BYTES = 64 * 2**20
MAX_PENDING = 100  # uploads of one owner


class UploadStatus(StrEnum):
    """Where an upload stands. Expired is what is pending when its time is over: nobody writes that down."""

    PENDING = "pending"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class UploadRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One upload. ``seconds`` is how long its file is to be kept, ``file`` the id of that; times are Unix seconds."""

    id: str
    owner: str
    filename: str
    purpose: Purpose
    nbytes: int
    created: float
    expires: float
    seconds: float | None = None
    status: UploadStatus = UploadStatus.PENDING
    file: str = ""

    def status_at(self, now: float) -> UploadStatus:
        """Where it stands."""
        over = self.status is UploadStatus.PENDING and self.expires <= now
        return UploadStatus.EXPIRED if over else self.status

    def check_pending(self, now: float) -> None:
        """Raise InvalidRequestError where nothing can be added to it any more."""
        status = self.status_at(now)
        if status is UploadStatus.PENDING:
            return
        said = {
            UploadStatus.COMPLETED: f"is completed: its file is {self.file}",
            UploadStatus.CANCELLED: "was cancelled; create another",
            UploadStatus.EXPIRED: f"has expired, {UPLOAD_SECONDS / 60:g} minutes after it was created; create another",
        }
        raise InvalidRequestError(f"the upload {self.id} {said[status]}", param="upload_id", code=f"upload_{status}")


class PartRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One part of an upload; its content is in the store, by its digest."""

    id: str
    upload: str
    nbytes: int
    sha256: str
    created: float


def new_upload_id() -> str:
    """An id that nobody can guess."""
    return f"upload_{secrets.token_hex(12)}"


def new_part_id() -> str:
    """As ``new_upload_id``."""
    return f"part_{secrets.token_hex(12)}"


def upload_data(record: UploadRecord, now: float, file: FileRecord | None = None) -> dict[str, Any]:
    """What is told of an upload: OpenAI's object."""
    return {
        "id": record.id,
        "object": "upload",
        "bytes": record.nbytes,
        "created_at": int(record.created),
        "expires_at": int(record.expires),
        "filename": record.filename,
        "purpose": record.purpose.value,
        "status": record.status_at(now).value,
        "file": None if file is None else file_data(file),
    }


def part_data(record: PartRecord) -> dict[str, Any]:
    """What is told of a part."""
    return {
        "id": record.id,
        "object": "upload.part",
        "created_at": int(record.created),
        "upload_id": record.upload,
    }
