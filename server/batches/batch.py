"""What is kept of a batch, and what is told of it: OpenAI's object."""

from __future__ import annotations

import secrets
import time
from enum import StrEnum
from typing import Any

import msgspec

from server.catalog.jobs import JobRow
from server.errors import InvalidRequestError, NotFoundError

KIND = "batch"
WINDOW_SECONDS = {"24h": 86400.0}


class BatchStatus(StrEnum):
    """Where a batch stands."""

    VALIDATING = "validating"
    FAILED = "failed"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


OPEN = (BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS, BatchStatus.FINALIZING, BatchStatus.CANCELLING)
ENDED = tuple(status for status in BatchStatus if status not in OPEN)
_MOMENTS = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")


class UnknownBatchError(NotFoundError):
    """No batch of that id, or none of this owner's."""

    param = "batch_id"
    code = "batch_not_found"


class Batch(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One batch. ``moments`` are when it came into each status, in Unix seconds; ``errors`` lines and reasons."""

    endpoint: str
    input_file: str
    window: str
    expires: float
    metadata: dict[str, str] | None = None
    output_seconds: float | None = None  # that its files are kept
    moments: dict[str, float] = {}
    errors: tuple[tuple[int, str], ...] = ()
    total: int = 0
    completed: int = 0
    failed: int = 0
    output_file: str | None = None
    error_file: str | None = None


def new_batch_id() -> str:
    """An id that nobody can guess."""
    return f"batch_{secrets.token_hex(12)}"


def batch_of(row: JobRow) -> Batch:
    """What the record of ``row`` says."""
    return msgspec.json.decode(row.record, type=Batch)


def with_batch(row: JobRow, batch: Batch, status: BatchStatus | None = None) -> JobRow:
    """``row`` with the record ``batch``, and from now on in ``status`` if that is given."""
    if status is not None:
        batch = msgspec.structs.replace(batch, moments={**batch.moments, status.value: time.time()})
    record = msgspec.json.encode(batch).decode()
    return msgspec.structs.replace(row, record=record, status=(status or BatchStatus(row.status)).value)


def cancelled(row: JobRow) -> JobRow:
    """``row`` as its owner's cancelling leaves it. Raises InvalidRequestError for one that has ended."""
    status = BatchStatus(row.status)
    if status not in OPEN:
        raise InvalidRequestError(f"the batch {row.id} has ended already: it is {status.value}", code="batch_ended")
    return row if status is BatchStatus.CANCELLING else with_batch(row, batch_of(row), BatchStatus.CANCELLING)


def batch_data(row: JobRow) -> dict[str, Any]:
    """What is told of a batch."""
    batch = batch_of(row)
    problems = [
        {"code": "invalid_request", "line": line or None, "message": message, "param": None}
        for line, message in batch.errors
    ]
    moments = {f"{name}_at": _whole(batch.moments.get(name)) for name in _MOMENTS}
    return {
        "id": row.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "errors": {"object": "list", "data": problems} if problems else None,
        "input_file_id": batch.input_file,
        "completion_window": batch.window,
        "status": row.status,
        "output_file_id": batch.output_file,
        "error_file_id": batch.error_file,
        "created_at": int(row.created),
        "expires_at": int(batch.expires),
        **moments,
        "request_counts": {"total": batch.total, "completed": batch.completed, "failed": batch.failed},
        "metadata": batch.metadata,
    }


def _whole(moment: float | None) -> int | None:
    return None if moment is None else int(moment)
