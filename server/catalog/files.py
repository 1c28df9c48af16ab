"""Files that clients upload, and that jobs write for them, as records. Their content is in the store, by its digest."""

from __future__ import annotations

import secrets
from enum import StrEnum
from typing import Any

import msgspec

MAX_FILENAME = 255
DAY_SECONDS = 86400
MIN_EXPIRY, MAX_EXPIRY = 3600, 30 * DAY_SECONDS


class Purpose(StrEnum):
    """What a file is for. Clients upload all but the last two."""

    FINE_TUNE = "fine-tune"
    BATCH = "batch"
    ASSISTANTS = "assistants"
    VISION = "vision"
    USER_DATA = "user_data"
    EVALS = "evals"
    BATCH_OUTPUT = "batch_output"
    RESULTS = "fine-tune-results"


MADE_HERE = (Purpose.BATCH_OUTPUT, Purpose.RESULTS)


class FileRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is kept of one file. ``owner`` tells the holders of different keys apart; times are Unix seconds."""

    id: str
    owner: str
    filename: str
    purpose: Purpose
    nbytes: int
    sha256: str
    created: float
    expires: float | None = None
    number: int = 0  # in the order of creation; 0 until it is kept

    def has_expired(self, now: float) -> bool:
        """Whether it is to be treated as deleted."""
        return self.expires is not None and self.expires <= now


def new_file_id() -> str:
    """An id that nobody can guess."""
    return f"file-{secrets.token_hex(12)}"


def file_data(record: FileRecord) -> dict[str, Any]:
    """What is told of a file: OpenAI's object."""
    return {
        "id": record.id,
        "object": "file",
        "bytes": record.nbytes,
        "created_at": int(record.created),
        "expires_at": None if record.expires is None else int(record.expires),
        "filename": record.filename,
        "purpose": record.purpose.value,
        "status": "processed",
        "status_details": None,
    }
