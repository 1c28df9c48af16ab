"""What is kept of a fine-tuning job, and what is told of it: OpenAI's object."""

from __future__ import annotations

import secrets
from enum import StrEnum
from typing import Any, Literal

import msgspec

from server.catalog.jobs import JobEvent, JobRow
from server.errors import InvalidRequestError, NotFoundError

KIND = "fine_tuning"
Auto = Literal["auto"]


class Status(StrEnum):
    """Where a job stands."""

    VALIDATING = "validating_files"
    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


BEGUN = (Status.VALIDATING, Status.QUEUED, Status.RUNNING, Status.PAUSED)
ENDED = (Status.SUCCEEDED, Status.FAILED, Status.CANCELLED)


class UnknownJobError(NotFoundError):
    """No job of that id, or none of this owner's."""

    param = "fine_tuning_job_id"
    code = "job_not_found"


class JobFailedError(Exception):
    """Why a job ends: OpenAI's ``code``, and a ``message`` that may be shown; ``param`` names the field at fault."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.failure = Failure(code, message, param)


class Failure(msgspec.Struct, frozen=True):
    """What a failed job tells."""

    code: str
    message: str
    param: str | None = None


class Hyperparameters(msgspec.Struct, frozen=True, kw_only=True):
    """As they were asked for; ``auto`` until the files are known. ``beta`` is of the method dpo."""

    n_epochs: int | Auto = "auto"
    batch_size: int | Auto = "auto"
    learning_rate_multiplier: float | Auto = "auto"
    beta: float | Auto = "auto"


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """A model of a job that is served: ``figures`` are of the ``step`` after which it was saved."""

    name: str
    step: int
    created: float
    figures: dict[str, float]


class FineTuningJob(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One job. ``model`` is as it was asked for; ``name`` what its result is called, served once it has succeeded.

    ``start`` is the adapter version that training begins with, None: a fresh one. Times are Unix seconds.
    """

    model: str
    name: str
    training_file: str
    seed: int
    method: Literal["supervised", "dpo"] = "supervised"
    hyperparameters: Hyperparameters = Hyperparameters()
    validation_file: str | None = None
    metadata: dict[str, str] | None = None
    start: str | None = None
    organization: str = ""
    steps: int = 0  # of the whole run, once they are known
    began: float | None = None
    finished: float | None = None
    estimated_finish: float | None = None
    trained_tokens: int | None = None
    result_files: tuple[str, ...] = ()
    checkpoints: tuple[Checkpoint, ...] = ()  # oldest first, the result among them
    error: Failure | None = None


def new_job_id() -> str:
    """An id that nobody can guess."""
    return f"ftjob-{secrets.token_hex(12)}"


def job_of(row: JobRow) -> FineTuningJob:
    """What the record of ``row`` says."""
    return msgspec.json.decode(row.record, type=FineTuningJob)


def with_job(row: JobRow, job: FineTuningJob, status: Status | None = None) -> JobRow:
    """``row`` with the record ``job``, and in ``status`` if that is given."""
    record = msgspec.json.encode(job).decode()
    return msgspec.structs.replace(row, record=record, status=(status or Status(row.status)).value)


def job_data(row: JobRow) -> dict[str, Any]:
    """What is told of a job. OpenAI's API calls paused jobs queued; ``paused`` tells them apart."""
    job, status = job_of(row), Status(row.status)
    hyperparameters = msgspec.to_builtins(job.hyperparameters)
    if job.method != "dpo":
        del hyperparameters["beta"]
    return {
        "object": "fine_tuning.job",
        "id": row.id,
        "model": job.model,
        "created_at": int(row.created),
        "finished_at": _whole(job.finished),
        "fine_tuned_model": job.name if status is Status.SUCCEEDED else None,
        "organization_id": job.organization,
        "status": (Status.QUEUED if status is Status.PAUSED else status).value,
        "paused": status is Status.PAUSED,
        "hyperparameters": {name: value for name, value in hyperparameters.items() if name != "beta"},
        "method": {"type": job.method, job.method: {"hyperparameters": hyperparameters}},
        "training_file": job.training_file,
        "validation_file": job.validation_file,
        "result_files": list(job.result_files),
        "trained_tokens": job.trained_tokens,
        "error": None if job.error is None else msgspec.to_builtins(job.error),
        "seed": job.seed,
        "estimated_finish": _whole(job.estimated_finish) if status is Status.RUNNING else None,
        "integrations": [],
        "metadata": job.metadata,
    }


def event_data(event: JobEvent) -> dict[str, Any]:
    """What is told of an event."""
    return {
        "object": "fine_tuning.job.event",
        "id": f"ftevent-{event.number}",
        "created_at": int(event.time),
        "level": event.level,
        "type": event.type,
        "message": event.message,
        "data": event.data or {},
    }


def checkpoint_data(row: JobRow) -> list[dict[str, Any]]:
    """The checkpoints of a job that are served, newest first: there are some once it has succeeded."""
    job = job_of(row)
    return [
        {
            "object": "fine_tuning.job.checkpoint",
            "id": f"ftckpt-{row.id.removeprefix('ftjob-')}-{checkpoint.step}",
            "created_at": int(checkpoint.created),
            "fine_tuned_model_checkpoint": checkpoint.name,
            "fine_tuning_job_id": row.id,
            "step_number": checkpoint.step,
            "metrics": {"step": checkpoint.step, **checkpoint.figures},
        }
        for checkpoint in reversed(job.checkpoints)
    ]


def wanting(row: JobRow, wish: Literal["cancel", "pause", "resume"]) -> JobRow:
    """``row`` as its owner's wish leaves it: what runs is told so, and goes on until its server has done it.

    Raises InvalidRequestError where a job cannot do that any more.
    """
    status = Status(row.status)
    if status in ENDED:
        raise InvalidRequestError(f"the job {row.id} has ended already: it {_ENDED[status]}", code="job_ended")
    if wish == "resume":
        if status is not Status.PAUSED:
            raise InvalidRequestError(f"the job {row.id} is {status.value}, not paused", code="job_not_paused")
        checked = job_of(row).began is not None
        return msgspec.structs.replace(row, status=(Status.QUEUED if checked else Status.VALIDATING).value, wish="")
    if wish == "cancel":
        return msgspec.structs.replace(row, status=Status.CANCELLED.value, wish="")
    if status is Status.RUNNING:
        return msgspec.structs.replace(row, wish="pause")
    return msgspec.structs.replace(row, status=Status.PAUSED.value, wish="")


_ENDED = {Status.SUCCEEDED: "succeeded", Status.FAILED: "failed", Status.CANCELLED: "was cancelled"}


def _whole(moment: float | None) -> int | None:
    return None if moment is None else int(moment)
